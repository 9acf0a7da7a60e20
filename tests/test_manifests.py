"""The YAML that a user would apply: what it means, what is refused, and where it says the mistake is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni import manifests
from cni.facts import NamespaceFacts, NodeFacts, Owner, PodFacts
from cni.manifests import ManifestError, ObjectKey, Shown, contents, decoded, pieces
from ledger.resources import SpiderIPPool, SpiderReservedIP

CLUSTER = """\
apiVersion: v1
kind: Node
metadata:
  name: worker-node-1
  labels: {node-subnet: subnet-7}
---
apiVersion: v1
kind: Namespace
metadata:
  name: default
---
apiVersion: v1
kind: Pod
metadata:
  name: test-app-j9ftl
  namespace: default
  uid: 5b1c6a54-0c0e-4f5e-9d0b-6a3f1a6f0001
  labels: {app: test-app}
  ownerReferences:
  - {apiVersion: apps/v1, kind: DaemonSet, name: test-app, uid: 5b1c6a54, controller: true}
  annotations:
    ipam.spidernet.io/ippool: |-
      {"ipv4": ["test-ippool-6", "test-ippool-7"]}
spec:
  nodeName: worker-node-1
  containers: [{name: test-app, image: nginx}]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: test-ippool-6
spec:
  subnet: 10.6.0.0/16
  ips:
    - 10.6.168.60-10.6.168.69
  nodeAffinity:
    matchExpressions:
    - {key: node-subnet, operator: In, values: [subnet-6]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata:
  name: routers
spec:
  ips: [10.6.0.1]
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: test-app
"""
DAEMON_SET = Owner("apps/v1", "DaemonSet", "test-app")


@pytest.fixture(params=["C", "Python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of PyYAML's parsers: the C one is not built everywhere."""
    monkeypatch.setattr(manifests, "LOADER", yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader)
    chosen: str = request.param
    return chosen


def value_of(text: str) -> Any:
    """What this YAML means as the value of a field."""
    (manifest,) = manifests.manifests("f.yaml", f"apiVersion: v1\nkind: X\nvalue: {text}\n")
    return manifest.document["value"]


def pod(metadata: str = "", rest: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: p{', ' + metadata if metadata else ''}}}\n{rest}\n"


def only(text: str) -> Any:
    """The one object in the text."""
    found = contents("f.yaml", text)
    assert found.problems == ()
    (shown,) = found.objects
    return shown.value


def problem(text: str) -> str:
    """The one problem of the text."""
    (found,) = contents("f.yaml", text).problems
    return str(found)


def test_a_cluster_is_read_object_by_object_with_lines(loader: str) -> None:
    found = contents("cluster.yaml", CLUSTER)
    assert found.problems == ()
    assert [(str(each.key), each.line) for each in found.objects] == [
        ("Node worker-node-1", 1),
        ("Namespace default", 7),
        ("Pod default/test-app-j9ftl", 12),
        ("SpiderIPPool test-ippool-6", 28),
        ("SpiderReservedIP routers", 40),
    ]
    assert found.passed_over == ("apps/v1 DaemonSet",)
    node, namespace, read, pool, reservation = (each.value for each in found.objects)
    assert node == NodeFacts("worker-node-1", {"node-subnet": "subnet-7"})
    assert namespace == NamespaceFacts("default", {"kubernetes.io/metadata.name": "default"}, {})
    assert read == PodFacts(
        namespace="default",
        name="test-app-j9ftl",
        uid="5b1c6a54-0c0e-4f5e-9d0b-6a3f1a6f0001",
        node="worker-node-1",
        labels={"app": "test-app"},
        annotations={"ipam.spidernet.io/ippool": '{"ipv4": ["test-ippool-6", "test-ippool-7"]}'},
        owner=DAEMON_SET,
        top_owner=DAEMON_SET,
        alive=True,
        dead_reason="",
    )
    assert isinstance(pool, SpiderIPPool)
    assert (pool.spec.subnet, pool.spec.ips) == ("10.6.0.0/16", ("10.6.168.60-10.6.168.69",))
    assert pool.spec.node_affinity is not None and pool.spec.node_affinity.matches({"node-subnet": "subnet-6"})
    assert isinstance(reservation, SpiderReservedIP) and reservation.spec.ips == ("10.6.0.1",)


@pytest.mark.parametrize(("text", "meaning"), [
    ("text", "text"),
    ("'8080'", "8080"),
    ("! 8080", 8080),
    ("!!str 8080", "8080"),
    ("8080", 8080),
    ("-8_080", -8080),
    ("+1", 1),
    ("0", 0),
    ("0777", 511),
    ("0o17", 15),
    ("-0x1F", -31),
    ("0b101", 5),
    ("089", 89.0),
    ("9999999999999999999999", 1e22),
    ("1e3", 1000.0),
    (".5", 0.5),
    ("-1.", -1.0),
    ("1e999", "1e999"),
    ("_1", "_1"),
    ("1.2.3.4", "1.2.3.4"),
    (".", "."),
    ("22:22", "22:22"),
    ("12:34:56:01:02:03", "12:34:56:01:02:03"),
    ("2026-01-02", "2026-01-02"),
    ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
    ("y", True), ("Yes", True), ("ON", True), ("true", True), ("yEs", "yEs"),
    ("n", False), ("No", False), ("OFF", False), ("False", False), ("offs", "offs"),
    ("", None), ("~", None), ("null", None), ("Null", None), ("nULL", "nULL"),
    ("=", "="),
    ("{1: a, yes: b, '2': c}", {"1": "a", "true": "b", "2": "c"}),
    ("[a, [], {}]", ["a", [], {}]),
    ("!!map {a: !!seq [b]}", {"a": ["b"]}),
    ("{<<: {a: 1, b: 1}, b: 2}", {"a": 1, "b": 2}),
    ("{b: 2, <<: [{a: 1}, {a: 3, b: 4, c: 5}]}", {"a": 1, "b": 2, "c": 5}),
    ("{'<<': 1}", {"<<": 1}),
    ("[&a {x: [1]}, *a, &a 7, *a]", [{"x": [1]}, {"x": [1]}, 7, 7]),
    ("{&k name: 1, other: *k}", {"name": 1, "other": "name"}),
])  # fmt: skip
def test_scalars_mean_what_they_mean_to_kubectl(loader: str, text: str, meaning: Any) -> None:
    assert value_of(text) == meaning
    assert type(value_of(text)) is type(meaning)


OBJECT = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"


@pytest.mark.parametrize(("text", "expected"), [
    ("a: b: c\n", "f.yaml:1: mapping values are not allowed"),
    ("a: 1\nb: [1,\n2\nc: 3\n", "f.yaml:4: while parsing a flow sequence"),
    ("a: 'never\nclosed\n", "f.yaml:3: while scanning a quoted scalar"),
    ("a:\n\tb: 1\n", "f.yaml:2: while scanning for the next token, found character"),
    (OBJECT + "---\n- 1\n", "f.yaml:5: is not an object"),
    (OBJECT + "---\nonly text\n", "f.yaml:5: is not an object"),
    (OBJECT + "---\n# a comment\n\nkind: Pod\n", "f.yaml:7: has no apiVersion"),
    ("apiVersion: v1\n", "f.yaml:1: has no kind"),
    ("apiVersion: v1\nkind: ''\n", "f.yaml:1: has no kind"),
    ("apiVersion: v1\nkind: 7\n", "f.yaml:1: has no kind"),
    ("apiVersion: v1\nkind: \"Pod\\nforged: log line\"\n", "f.yaml:1: has no kind, or an impossible one"),
    ("a: 1\nb: 2\na: 3\n", 'f.yaml:3: the key "a" stands here twice'),
    ("1: x\n'1': y\n", 'f.yaml:2: the key "1" stands here twice'),
    ("a: {x: 1,\n  x: 2}\n", 'f.yaml:2: the key "x" stands here twice'),
    ("a: 1\n? [b]\n: 2\n", "f.yaml:2: a key must be text"),
    ("a: 1\n1.5: 2\n", "f.yaml:2: a key must be text"),
    ("a: 1\n~: 2\n", "f.yaml:2: a key must be text"),
    ("a: 1\nb: *c\n", "f.yaml:2: the alias *c stands for nothing written before it"),
    ("a: &a [1, *a]\n", "f.yaml:1: the alias *a stands for nothing written before it"),
    (OBJECT + "a: &a 1\n---\nb: *a\n", "f.yaml:6: the alias *a stands for nothing written before it"),
    ("a: 1\n<<: 2\n", "f.yaml:2: << takes a mapping"),
    ("a: 1\n<<: [{}, 2]\n", "f.yaml:2: << takes a mapping"),
    ("a: 1\nb: !!binary aGk=\n", "f.yaml:2: the tag tag:yaml.org,2002:binary is not allowed"),
    ("a: !!python/object/apply:os.getcwd []\n", "f.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd"),
    ("a: 1\nb: !mine {}\n", "f.yaml:2: the tag !mine is not allowed"),
    ("a: 1\nb: .nan\n", "f.yaml:2: JSON has no number .nan"),
    ("a: 1\nb: -.Inf\n", "f.yaml:2: JSON has no number -.Inf"),
    ("a: 1\nb: \x07\n", "f.yaml:2: U+0007 is not allowed"),
    ("a: 1\nb: \ud800\n", "f.yaml:2: U+D800 is not allowed"),
    ('a: 1\nb: "\\0"\n', "f.yaml:2: U+0000 is not allowed"),
    ("apiVersion: v1\nkind: List\nitems: {}\n", "f.yaml:1: the items of a List are not a list"),
    ("apiVersion: v1\nkind: List\nitems:\n- 7\n", "f.yaml:1: is not an object"),
])  # fmt: skip
def test_what_is_no_yaml_or_no_object_is_refused_by_line(loader: str, text: str, expected: str) -> None:
    with pytest.raises(ManifestError) as refused:
        manifests.manifests("f.yaml", text)
    assert str(refused.value).startswith(expected)
    assert expected in "\n".join(str(each) for each in contents("f.yaml", text).problems)


@pytest.mark.parametrize("text", [r'a: "\ud800"', r'a: "\UFFFFFFFF"', "a: 1\n..." * 3 + "\n%FOO\n%YAML 9.9\nb: 1"])
def test_what_the_parsers_take_differently_is_refused_by_both(loader: str, text: str) -> None:
    with pytest.raises(ManifestError):
        manifests.manifests("f.yaml", text)


@pytest.mark.parametrize(("text", "expected"), [
    (pod("labels: {app: 8080}"), "f.yaml:1: Pod: metadata.labels.app: Input should be a valid string, not 8080"),
    (pod("annotations: {a: true}"), "metadata.annotations.a: Input should be a valid string, not true"),
    (pod("labels: {a: }"), "metadata.labels.a: Input should be a valid string"),
    (pod("labels: [a]"), "metadata.labels: Input should be a valid dictionary"),
    (pod("deletionTimestamp: soon"), "metadata.deletionTimestamp: "),
    (pod("ownerReferences: [{kind: Job, controller: true}]"), "metadata.ownerReferences[0].name: Field required"),
    (pod(rest="spec: {nodeName: 7}"), "spec.nodeName: Input should be a valid string, not 7"),
    (pod(rest="spec: []"), "spec: Input should be a valid dictionary"),
    (pod(rest="spec: {nodeName: 'a|b'}"), 'spec.nodeName: "a|b" cannot be one'),
    (pod("namespace: a.b"), 'metadata.namespace: "a.b" cannot be one'),
    (pod("uid: 'a|b'"), 'metadata.uid: "a|b" cannot be one'),
    (pod().replace("name: p", "name: Upper"), 'metadata.name: "Upper" cannot be one'),
    (pod().replace("name: p", "name: ''"), 'metadata.name: "" cannot be one'),
    (pod().replace("name: p", "name: " + "a" * 254), "metadata.name: "),
    (pod().replace("name: p", "generateName: p-"), "metadata.name: Field required"),
    (pod().replace("v1", "v2"), "apiVersion: Input should be 'v1', not \"v2\""),
    ("apiVersion: v1\nkind: Pod\n", "metadata: Field required"),
    ("apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", 'Namespace: metadata.name: "a.b" cannot be one'),
    ("# one\n\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\nmetadata: {name: p}\n"
     "spec: {subnet: 10.6.0.0/16, ipVersion: '4', ips: 10.6.0.2}\n",
     'f.yaml:3: SpiderIPPool: spec.ipVersion: Input should be a valid integer, not "4"; spec.ips: '),
    ("apiVersion: spiderpool.spidernet.io/v1\nkind: SpiderIPPool\nmetadata: {name: p}\nspec: {subnet: 10.6.0.0/16}\n",
     "apiVersion: Input should be 'spiderpool.spidernet.io/v2beta1', not \"spiderpool.spidernet.io/v1\""),
    ("apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderReservedIP\nmetadata: {name: r}\nspec: {ips: [[]]}\n",
     "f.yaml:1: SpiderReservedIP: spec.ips[0]: Input should be a valid string"),
])  # fmt: skip
def test_a_bad_field_is_named_with_its_line(text: str, expected: str) -> None:
    assert expected in problem(text)


def test_an_error_names_no_more_fields_than_fit_a_line() -> None:
    fields = ", ".join(f"l{number}: {number}" for number in range(10_000))
    assert problem(pod(f"labels: {{{fields}}}")).count(";") == manifests.FIELDS_SHOWN_MAX - 1


def test_one_bad_document_does_not_hide_the_others() -> None:
    found = contents("f.yaml", pod("labels: {a: 1}") + "---\n" + pod() + "---\n" + pod("uid: 7"))
    assert [each.line for each in found.problems] == [1, 11]
    assert [(each.key.name, each.line) for each in found.objects] == [("p", 6)]


@pytest.mark.parametrize(("metadata", "rest", "reason"), [
    ("", "", ""),
    ("", "status: {phase: Running}", ""),
    ("", "status: {phase: Pending, reason: Evicted}", ""),
    ("deletionTimestamp: 2026-01-02T03:04:05Z", "", "terminating"),
    ("deletionTimestamp: 2026-01-02T03:04:05Z", "status: {phase: Failed, reason: Evicted}", "terminating"),
    ("deletionTimestamp: ", "", ""),
    ("", "status: {phase: Succeeded}", ""),
    ("", "spec: {restartPolicy: Always}\nstatus: {phase: Succeeded}", ""),
    ("", "spec: {restartPolicy: OnFailure}\nstatus: {phase: Succeeded}", "succeeded"),
    ("", "spec: {restartPolicy: Never}\nstatus: {phase: Succeeded}", "succeeded"),
    ("", "spec: {restartPolicy: OnFailure}\nstatus: {phase: Failed}", ""),
    ("", "spec: {restartPolicy: Never}\nstatus: {phase: Failed}", "failed"),
    ("", "spec: {restartPolicy: Always}\nstatus: {phase: Failed, reason: Evicted}", "evicted"),
])  # fmt: skip
def test_a_pod_is_alive_until_it_ends_or_is_to_end(metadata: str, rest: str, reason: str) -> None:
    read = only(pod(metadata, rest))
    assert (read.alive, read.dead_reason) == (not reason, reason)


@pytest.mark.parametrize(("metadata", "owner"), [
    ("", None),
    ("ownerReferences: []", None),
    ("ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: u}]", None),
    ("ownerReferences: [{apiVersion: v1, kind: A, name: a, uid: u},"
     " {apiVersion: batch/v1, kind: Job, name: j, uid: u, controller: true}]", Owner("batch/v1", "Job", "j")),
])  # fmt: skip
def test_the_controller_is_the_owner_and_its_own_top_owner(metadata: str, owner: Owner | None) -> None:
    read = only(pod(metadata))
    assert (read.owner, read.top_owner) == (owner, owner)


def test_a_pod_without_namespace_uid_or_node_has_the_default_and_none() -> None:
    assert only(pod()) == PodFacts("default", "p", "", "")


def test_a_mirror_pod_is_static() -> None:
    assert only(pod("annotations: {kubernetes.io/config.mirror: abc}")).static
    assert not only(pod()).static


def test_a_namespace_carries_its_name_as_a_label_whatever_was_written() -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns, labels: {a: b, kubernetes.io/metadata.name: x}}\n"
    assert only(text) == NamespaceFacts("ns", {"a": "b", "kubernetes.io/metadata.name": "ns"}, {})


def test_only_pods_are_known_by_a_namespace() -> None:
    text = "apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: x}\n"
    assert [each.key for each in contents("f", text).objects] == [ObjectKey("Node", "", "a")]


def test_lists_are_unfolded_and_their_objects_keep_their_lines(loader: str) -> None:
    text = (
        "# kubectl get -o yaml\napiVersion: v1\nkind: List\nitems:\n"
        "- apiVersion: v1\n  kind: Node\n  metadata:\n    name: a\n"
        "- apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Node, metadata: {name: b}}\n"
        "- {apiVersion: v1, kind: List, items: }\n"
        "- {apiVersion: v1, kind: Service, metadata: {name: s}}\n"
    )
    found = contents("f.yaml", text)
    assert [(each.key.name, each.line) for each in found.objects] == [("a", 5), ("b", 12)]
    assert (found.passed_over, found.problems) == (("v1 Service",), ())


def test_a_bad_item_of_a_list_is_named_by_its_own_line() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: 5}\n- {kind: X}\n"
    assert [each.line for each in contents("f.yaml", text).problems] == [7]
    assert [each.line for each in contents("f.yaml", text.rpartition("- ")[0]).problems] == [4]


def test_other_kinds_are_passed_over_by_name_once() -> None:
    text = "---\n".join(f"apiVersion: {each}\nkind: Pod\n" for each in ("a/v1", "b/v1", "a/v1"))
    assert contents("f.yaml", text) == ((), ("a/v1 Pod", "b/v1 Pod"), ())


@pytest.mark.parametrize("text", [
    CLUSTER.replace("\n", "\r\n"),
    "---\n" + CLUSTER + "---\n---\n# nothing\n---\n",
    "--- # first\n" + CLUSTER + "...\n",
    CLUSTER.replace("---\n", "---  \n"),
    CLUSTER.replace("---\n", "...\n---\n"),
    "%YAML 1.1\n---\n" + CLUSTER,
])  # fmt: skip
def test_the_same_cluster_written_otherwise(loader: str, text: str) -> None:
    assert_same_cluster(text)


@pytest.mark.parametrize("text", [
    CLUSTER.replace("---\n", "---\t\n"),
    CLUSTER.replace("name: default", "name:\tdefault"),
    CLUSTER.replace("name: default", "name: default\t# text"),
])  # fmt: skip
def test_tabs_may_stand_where_they_do_not_indent(text: str) -> None:
    assert_same_cluster(text)  # Not with the Python scanner, which takes tabs nowhere.


def assert_same_cluster(text: str) -> None:
    expected = [each._replace(line=0) for each in contents("f.yaml", CLUSTER).objects]
    read = [contents("f.yaml", piece).moved(line - 1) for line, piece in pieces(text)]
    assert [problem for each in read for problem in each.problems] == []
    assert [each._replace(line=0) for part in read for each in part.objects] == expected


def test_a_document_of_json_is_yaml() -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}}}, indent=1)
    assert only(text) == NodeFacts("n", {"a": "b"})


@pytest.mark.parametrize(("content", "text"), [
    (b"a: 1\n", "a: 1\n"),
    (b"\xef\xbb\xbfa: \xc3\xa4\r\n", "a: ä\r\n"),
    (b"# nothing yet", "# nothing yet"),
])  # fmt: skip
def test_a_file_is_utf_8_with_or_without_a_mark(content: bytes, text: str) -> None:
    assert decoded("f.yaml", content) == text


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "f.yaml: is empty"),
    (b" \n\t\r\n", "f.yaml: is empty"),
    (b"\xef\xbb\xbf", "f.yaml: is empty"),
    (b"a: 1\nb: \xff\n", "f.yaml:2: is not UTF-8 (byte 0xff)"),
    (b"a: 1\nb: \xc3", "f.yaml:2: is not UTF-8 (byte 0xc3)"),
    ("a: 1".encode("utf-16"), "f.yaml:1: is not UTF-8 (byte 0xff)"),
])  # fmt: skip
def test_what_is_no_text_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(ManifestError) as refused:
        decoded("f.yaml", content)
    assert str(refused.value).startswith(expected)


def test_a_file_may_be_so_large_and_no_larger() -> None:
    largest = b"#" * manifests.FILE_BYTES_MAX
    assert len(decoded("f.yaml", largest)) == manifests.FILE_BYTES_MAX
    with pytest.raises(ManifestError, match=r"f\.yaml: is larger than 67108864 bytes"):
        decoded("f.yaml", largest + b"#")


def laughs(form: str, end: str) -> str:
    levels = [f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 40)]
    return "\n".join(["apiVersion: v1", "kind: X", f"a0: &a0 {end}", *levels])


@pytest.mark.parametrize(("text", "expected"), [
    (laughs("[{}]", "lol"), "f.yaml:8: aliases repeat more than 10000 values"),
    (laughs("{{<<: [{}]}}", "{lol: 1}"), "aliases repeat more than 10000 values"),
    ("a: &a [" + "1, " * 10_000 + "]\nb: *a\n", "f.yaml:2: aliases repeat more than 10000 values"),
    ("a: " + "[" * 1_000_000, "f.yaml:1: is nested deeper than 64"),
    ("a: " + "{a: " * 1_000_000, "f.yaml:1: is nested deeper than 64"),
    ("- " * 1_000_000, "f.yaml:1: is nested deeper than 64"),
    ("? " * 1_000_000, "f.yaml:1: is nested deeper than 64"),
], ids=["list", "merge", "long", "flow list", "flow mapping", "block list", "keys"])  # fmt: skip
def test_bombs_are_refused_by_name(loader: str, text: str, expected: str) -> None:
    assert expected in problem(text)


def test_as_many_aliases_as_people_write_are_fine() -> None:
    text = "labels: &l {a: b}\nrest: [" + "*l, " * 1000 + "]\n"
    assert len(manifests.manifests("f", OBJECT + text)[0].document["rest"]) == 1000


def test_the_aliases_of_one_document_do_not_count_for_the_next() -> None:
    one = OBJECT + "a: &a [" + "1, " * 4000 + "]\nb: *a\nc: *a\n---\n"
    assert len(manifests.manifests("f", one * 3)) == 3


def test_moved_contents_say_the_new_lines() -> None:
    found = contents("f.yaml", pod("uid: 1") + "---\n" + pod()).moved(10)
    assert ([each.line for each in found.problems], [each.line for each in found.objects]) == ([11], [16])


PATIENTLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
YAMLISH = st.lists(
    st.sampled_from([
        "---", "...", "%YAML 1.1", "--- |", "--- - 1", "apiVersion: v1", "kind: Pod", "kind: List", "items:", "a: |",
        "- {apiVersion: v1, kind: Node, metadata: {name: n}}", "metadata:", "  name: a", "  labels: {a: b}", "- ",
        "&a", "*a", "<<: *a", "!!str", "? ", ": ", "[", "]", "{", "}", ",", "'", '"', "|", ">", "0x", "1e9", ".inf",
        "\t", "  ", "# c", "\\", "\r", "\x85", "\ufeff",
    ]),
    max_size=12,
).map("\n".join)  # fmt: skip


@PATIENTLY
@given(st.text() | YAMLISH)
@example("\ud800")
@example('"\\UFFFFFFFF"')
@example("a: !<tag:yaml.org,2002:str> 1")
@example("\ufeff---\ufeff")
@example("!!map ''")
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(manifests, "LOADER", loader)
            found = contents("f.yaml", text)
            lines = max(len(text.splitlines()), 1) + 1
            assert all(0 <= each.line <= lines and each.text.isprintable() for each in found.problems)
            assert all(isinstance(each, Shown) for each in found.objects)


@PATIENTLY
@given(st.binary())
def test_no_file_does_more_than_be_refused(content: bytes) -> None:
    try:
        contents("f.yaml", decoded("f.yaml", content))
    except ManifestError as refused:
        assert refused.file == "f.yaml"


@PATIENTLY
@given(YAMLISH)
def test_reading_piece_by_piece_is_reading_the_whole(text: str) -> None:
    assert "".join(piece for _, piece in pieces(text)) == text
    parts = [contents("f.yaml", piece).moved(line - 1) for line, piece in pieces(text)]
    whole = contents("f.yaml", text)
    assert bool(whole.problems) == any(part.problems for part in parts)
    if not whole.problems:
        assert tuple(each for part in parts for each in part.objects) == whole.objects


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = st.sampled_from(["metadata", "spec", "status", "name", "uid", "labels", "ownerReferences", "ips", "nodeName"])
OBJECTS = st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner), max_leaves=10)


@PATIENTLY
@given(st.sampled_from(sorted(manifests._MODELS)), OBJECTS)
def test_whatever_stands_in_the_fields_is_read_or_refused(kind: tuple[str, str], document: Any) -> None:
    version = f"{kind[0]}/v2beta1" if kind[0] else "v1"
    stated = {**document, "apiVersion": version, "kind": kind[1]} if isinstance(document, dict) else document
    found = contents("f.yaml", json.dumps(stated, ensure_ascii=False))
    assert len(found.objects) + len(found.problems) == (stated is not None)
