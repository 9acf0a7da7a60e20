"""One call of a container runtime, read and judged: the plugin's request becomes a `CniCall` or a `CniError`.

The plugin sends what it was given: `NAME=VALUE` and a NUL byte for each variable, a lone NUL byte,
then the network configuration. Each command reads of it what it needs and no more, so that a
configuration in which a pool list was broken meanwhile never keeps a DEL from its work. Whatever
else a body may hold, the answer to it is a `CniError`. Nothing here knows pods, pools or the ledger.

Pure. The agent calls it for requests and for what lies in the spool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from cni.errors import NEWEST_VERSION, CniError, Code, bad_environment, invalid_configuration, shown
from ledger import addresses, ranges
from ledger.addresses import Family, Ip

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST_VERSION)
NAME_MAX = 253
"""Names become part of a claim's key, and that stands in an index, whose entries have a limit."""
INTERFACE_BYTES_MAX = 15
CONFIGURATIONS_REMEMBERED_MAX = 64
REMEMBERED_BYTES_MAX = 16 << 10
"""A node has a handful of networks; longer texts are hostile or carry one call's own results."""


class Command(StrEnum):
    """What the runtime asks for. VERSION is answered by the plugin."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


NEEDED = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
}
OLDEST_VERSION = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
ARGUMENTS = frozenset(
    {"IgnoreUnknown", "IP", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"}
)


class PodName(NamedTuple):
    """The pod as the runtime calls it; old runtimes send no uid."""

    namespace: str
    name: str
    uid: str


def asked_address(text: object) -> Ip:
    """The address that somebody asks for, written with or without a prefix length; ValueError when there is none."""
    if not isinstance(text, str):
        raise ValueError("Input should be a valid string")
    family: Family = 6 if ":" in text else 4
    if "/" in text:
        ranges.parse_cidr(text, family)
    return ranges.parse_address(text.partition("/")[0], family)


def one_of_each_family(asked: Iterable[Ip]) -> tuple[Ip, ...]:
    """The same addresses, none twice; ValueError when an interface would need two of one family."""
    different = tuple(dict.fromkeys(asked))
    if len({addresses.family(ip) for ip in different}) < len(different):
        raise ValueError("asks for more than one address of a family")
    return different


def is_interface(name: str) -> bool:
    """Whether Linux and the CNI specification take this for an interface's name."""
    strange = name in ("", ".", "..") or any(each in "/:" or each.isspace() for each in name)
    return not strange and len(name.encode(errors="replace")) <= INTERFACE_BYTES_MAX


def _known_level(level: str) -> str:
    if level.lower() not in ("", "debug", "info", "warn", "error", "fatal", "panic"):
        raise ValueError(f"unsupported log level {level}")
    return level


Asked = Annotated[Ip, BeforeValidator(asked_address)]
LogLevel = Annotated[str, AfterValidator(_known_level)]
LogSize = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]


class Section(BaseModel):
    """An object in a JSON text that others wrote: fields nobody knows are passed over, wrong types refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _written(cls, given: object) -> object:
        """What is written as null counts as not written. Lists become tuples, as strict fields take no list."""
        if not isinstance(given, dict):
            return given
        written = {name: value for name, value in given.items() if value is not None}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}


class Ipam(Section):
    """The part of the configuration that is ours. The plugin keeps no log file: those fields are only accepted."""

    type: str = ""
    ipam_unix_socket_path: str = ""
    default_ipv4_ippool: tuple[str, ...] = ()
    default_ipv6_ippool: tuple[str, ...] = ()
    clean_gateway: bool = False
    match_master_subnet: bool = False
    log_level: LogLevel = ""
    log_file_path: str = ""
    log_file_max_size: LogSize = ""
    log_file_max_age: LogSize = ""
    log_file_max_count: LogSize = ""


class Attachment(Section):
    """A container's interface, as a GC call lists those that are still there."""

    container: str = Field(alias="containerID")
    interface: str = Field(alias="ifname")


class _Identity(Section):
    version: str = Field(default="", alias="cniVersion")
    network: str = Field(default="", alias="name")


class _Asked(Section):
    ips: tuple[Asked, ...] = ()


class _Arguments(Section):
    cni: _Asked = _Asked()


class _Add(Section):
    ipam: Ipam = Ipam()
    runtime: _Asked = Field(default=_Asked(), alias="runtimeConfig")
    args: _Arguments = _Arguments()


class _Interface(Section):
    name: str = ""


class _Address(Section):
    address: Asked
    interface: int | None = None


class _Result(Section):
    ips: tuple[_Address, ...] = ()
    interfaces: tuple[_Interface, ...] = ()


class _Check(Section):
    previous: _Result = Field(alias="prevResult")


class _Gc(Section):
    attachments: tuple[Attachment, ...] = Field(default=(), alias="cni.dev/valid-attachments")


@dataclass(frozen=True)
class CniCall:
    """A call that can be acted on. What its command does not need keeps its default.

    `start` is the plugin's start stamp, nanoseconds since 1970 by the node's clock. An address in `exact` is wanted
    or none; `preferred` is only a wish. `previous` are the addresses that a CHECK expects on its interface.
    """

    command: Command
    version: str
    network: str
    start: int
    container: str = ""
    interface: str = ""
    netns: str = ""
    pod: PodName | None = None
    preferred: Ip | None = None
    ipam: Ipam = field(default_factory=Ipam)
    exact: tuple[Ip, ...] = ()
    previous: tuple[Ip, ...] = ()
    attachments: tuple[Attachment, ...] = ()


def read_call(body: bytes) -> CniCall:
    """The call that the plugin's request body carries; CniError says what is wrong with it."""
    variables, separator, configuration = (b"\0" + body).partition(b"\0\0")
    if not separator:
        raise CniError(Code.UNDECODABLE, "this is not a request of the plugin: no variables before the configuration")
    read = _remembered if len(configuration) <= REMEMBERED_BYTES_MAX else _Configuration
    said = read(configuration)
    try:
        return _call(dict(map(_variable, variables.split(b"\0")[1:])), said)
    except CniError as error:
        error.version = _version_said(said.document)
        raise


def problem_of(error: ValidationError) -> tuple[str, str, object]:
    """The first field that is wrong, in what way, and its value; what is a tuple here was written as a list."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].replace("tuple", "list"), first["input"]


def decoded(text: bytes) -> Any:
    """The value that a JSON text writes; ValueError where it is none, or one that could not be handed on safely.

    The parser refuses half a surrogate pair, NaN, numbers and nesting beyond its limits. No database takes a NUL.
    """
    if rb"\u0000" in text:
        raise ValueError("a NUL cannot be kept as text")
    return from_json(text, allow_inf_nan=False)


def _variable(entry: bytes) -> tuple[str, str]:
    name, equals, value = entry.partition(b"=")
    with suppress(UnicodeDecodeError):
        if equals:
            return name.decode("ascii"), value.decode()
    raise bad_environment(name.decode("ascii", errors="replace"), "is not UTF-8" if equals else "has no value")


class _Configuration:
    """What came on stdin, and what has been read of it: runtimes send the same bytes with ADD after ADD."""

    def __init__(self, raw: bytes) -> None:
        try:
            self.document = decoded(raw)
            json.loads(raw, object_pairs_hook=_refuse_twice)
        except ValueError as error:
            raise CniError(Code.UNDECODABLE, "failed to load CNI network configuration", str(error)) from None
        if not isinstance(self.document, dict):
            why = f"no object: {shown(self.document)}"
            raise CniError(Code.UNDECODABLE, "failed to load CNI network configuration", why)

    @cached_property
    def identity(self) -> _Identity:
        """What every command needs."""
        return _validated(_Identity, self.document)

    @cached_property
    def of_add(self) -> dict[str, Any]:
        """What an ADD needs besides."""
        add = _validated(_Add, self.document)
        return {"ipam": add.ipam, "exact": _exact(add)}


_remembered = lru_cache(CONFIGURATIONS_REMEMBERED_MAX)(_Configuration)


def _version_said(document: Mapping[str, Any]) -> str:
    said = document.get("cniVersion")
    return said if isinstance(said, str) and _VERSION.fullmatch(said) else NEWEST_VERSION


def _call(environment: Mapping[str, str], said: _Configuration) -> CniCall:
    """What is wrong is found in this order: command, other variables, version, network, what the command needs."""
    command = _command(environment)
    arguments = _pairs(environment.get("CNI_ARGS", ""))
    interface = _interface(environment.get("CNI_IFNAME", ""))
    return CniCall(
        command=command,
        start=_start(environment["SPIDERLEDGER_START"]),
        container=_container(environment.get("CNI_CONTAINERID", "")),
        interface=interface,
        netns=environment.get("CNI_NETNS", ""),
        pod=_pod(arguments),
        preferred=_preferred(arguments.get("IP", "")),
        version=_version(said.identity.version, command),
        network=_network(said.identity.network),
        **_needed_by(command, interface, said),
    )


def _needed_by(command: Command, interface: str, said: _Configuration) -> dict[str, Any]:
    """What this command needs of the configuration."""
    match command:
        case Command.ADD:
            return said.of_add
        case Command.CHECK:
            return {"previous": _addresses_on(interface, _validated(_Check, said.document).previous)}
        case Command.GC:
            return {"attachments": _validated(_Gc, said.document).attachments}
        case Command.DEL | Command.STATUS:
            return {}


def _command(environment: Mapping[str, str]) -> Command:
    said = environment.get("CNI_COMMAND", "")
    if said not in tuple(Command):
        raise bad_environment("CNI_COMMAND", f"is {shown(said)}, and must be one of {', '.join(Command)}")
    command = Command(said)
    needed = (*NEEDED.get(command, ()), "SPIDERLEDGER_START")
    if missing := ",".join(name for name in needed if not environment.get(name)):
        raise CniError(Code.BAD_ENVIRONMENT, f"required env variables [{missing}] missing")
    return command


def _start(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise bad_environment("SPIDERLEDGER_START", f"is no time in nanoseconds: {shown(text)}")
    return int(text)


def _container(text: str) -> str:
    if text and not _NAME.fullmatch(text):
        raise bad_environment("CNI_CONTAINERID", f"is no container id: {shown(text)}")
    return text


def _interface(text: str) -> str:
    if text and not is_interface(text):
        raise bad_environment("CNI_IFNAME", f"is no interface name of at most 15 bytes: {shown(text)}")
    return text


def _pairs(text: str) -> dict[str, str]:
    """What CNI_ARGS says; a key that is not known here needs IgnoreUnknown, as the CNI library has it."""
    pairs = [pair.partition("=") for pair in text.split(";") if pair]
    if broken := [name for name, equals, _ in pairs if not equals]:
        raise bad_environment("CNI_ARGS", f"has an invalid pair {shown(broken[0])}")
    found = {name: value for name, _, value in pairs}
    ignore = found.get("IgnoreUnknown", "0").lower()
    if ignore not in ("0", "1", "false", "true"):
        raise bad_environment("CNI_ARGS", f"has an invalid boolean IgnoreUnknown={ignore}")
    if ignore in ("0", "false") and (unknown := [name for name in found if name not in ARGUMENTS]):
        raise bad_environment("CNI_ARGS", f"has unknown args {shown(unknown)} and no IgnoreUnknown=1")
    return found


def _pod(arguments: Mapping[str, str]) -> PodName | None:
    names = [(key, arguments.get(key, "")) for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")]
    if not names[0][1] and not names[1][1]:
        return None
    for key, name in names:
        if not name and key != "K8S_POD_UID":
            raise bad_environment("CNI_ARGS", f"names half a pod: {key} is missing")
        if name and not _NAME.fullmatch(name):
            raise bad_environment("CNI_ARGS", f"has a wrong name {key}={shown(name)}")
    return PodName(*(name for _, name in names))


def _preferred(text: str) -> Ip | None:
    """Spiderpool never looked at IP=, so an unreadable one may not fail a pod now."""
    with suppress(ValueError):
        return asked_address(text)
    return None


def _version(version: str, command: Command) -> str:
    if version not in VERSIONS:
        said = f"unsupported specified CNI version {shown(version)}"
        raise CniError(Code.INCOMPATIBLE_VERSION, said, f"supported: {', '.join(VERSIONS)}")
    oldest = OLDEST_VERSION.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(oldest):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"CNI version {version} has no {command}", f"it came with {oldest}")
    return version


def _network(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise invalid_configuration("name", "is no network name" if name else "is missing", name)
    return name


_Read = TypeVar("_Read", bound=Section)


def _validated(model: type[_Read], document: Mapping[str, Any]) -> _Read:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid_configuration(*problem_of(error)) from None


def _exact(add: _Add) -> tuple[Ip, ...]:
    asked = (*add.runtime.ips, *add.args.cni.ips)
    try:
        return one_of_each_family(asked)
    except ValueError as error:
        texts = list(map(addresses.text, asked))
        raise invalid_configuration("runtimeConfig.ips with args.cni.ips", str(error), texts) from None


def _addresses_on(interface: str, result: _Result) -> tuple[Ip, ...]:
    """Those of this interface, and those of none: the result of a chain lists other plugins' interfaces too."""
    names: dict[int | None, str] = dict(enumerate(each.name for each in result.interfaces))
    return tuple(each.address for each in result.ips if names.get(each.interface, interface) == interface)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    """Of two equal keys of an object nobody can tell which was meant."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands twice among {shown([key for key, _ in pairs])}")


_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{NAME_MAX - 1}}}")
_NUMBER = re.compile(r"[0-9]{1,18}|[1-8][0-9]{18}")  # The ledger keeps 63 bits.
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
