"""A folder of YAML as a cluster: what it shows, what it keeps when a file is broken, and that it never shows half."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni import folder as reading
from cni.cluster import Cluster
from cni.facts import NamespaceFacts, NodeFacts, PodFacts
from cni.folder import Changes, Folder, FolderError
from cni.manifests import ObjectKey

MANY = 10_000


def pod(name: str, more: str = "", node: str = "node-1", uid: str = "") -> str:
    """A pod as a user writes it."""
    named = f", uid: {uid}" if uid else ""
    spec = f"spec: {{nodeName: {node}}}"
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{of: {name}}}{named}{more}}}\n{spec}\n"


def pool(name: str, more: str = "") -> str:
    kind = "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\n"
    return f"{kind}metadata: {{name: {name}{more}}}\nspec: {{subnet: 10.6.0.0/16}}\n"


def together(*documents: str) -> str:
    return "---\n".join(documents)


def key(name: str) -> ObjectKey:
    return ObjectKey("Pod", "default", name)


def read(path: Path) -> Folder:
    """The folder, read once."""
    folder = Folder(path)
    folder.refresh()
    return folder


def names(folder: Folder) -> list[str]:
    return [each.name for each in folder.snapshot.objects]


def texts(folder: Folder) -> list[str]:
    return [str(each) for each in folder.problems]


def replace(path: Path, text: str) -> None:
    """As everybody should write: beside, then renamed."""
    beside = path.with_name("." + path.name)
    beside.write_text(text)
    beside.replace(path)


_at_open: list[Callable[[Path], None]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _at_open and event in ("open", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        _at_open[-1](Path(arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def at_open(act: Callable[[Path], None]) -> Iterator[None]:
    """Do this whenever a file is about to be opened, or a folder listed. (An audit hook can only be switched off.)"""
    _at_open.append(act)
    try:
        yield
    finally:
        _at_open.pop()


@contextmanager
def opened_in(path: Path) -> Iterator[list[str]]:
    """What is opened or listed in the folder meanwhile."""
    found: list[str] = []
    with at_open(lambda opened: found.append(opened.name) if str(opened).startswith(str(path)) else None):
        yield found


@contextmanager
def just_before_reading(path: Path, *acts: Callable[[Path], object]) -> Iterator[None]:
    """Do the first when the file is about to be opened, the second the next time, and so on."""
    left = list(acts)

    def act(opened: Path) -> None:
        if opened == path and left and not threading.current_thread().name.startswith("act"):
            # In a thread of its own, whose own opening of the file is none of ours.
            actor = threading.Thread(target=left.pop(0), args=(path,), name="act")
            actor.start()
            actor.join()

    with at_open(act):
        yield
    assert not left


# What is shown


def test_a_folder_shows_what_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: {zone: a}}\n")
    (tmp_path / "namespaces.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n")
    (tmp_path / "pods.yaml").write_text(together(pod("a"), pod("b", node="node-2"), pod("c")))
    (tmp_path / "pools.yaml").write_text(together(pool("second"), pool("first")))
    reserved = "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderReservedIP\nmetadata: {name: r}\nspec: {}\n"
    (tmp_path / "reserved.yaml").write_text(reserved)
    folder = read(tmp_path)
    cluster: Cluster = folder
    assert cluster.pod("default", "a") == PodFacts("default", "a", "", "node-1", {"of": "a"})
    assert cluster.pod("default", "x") is None and cluster.pod("kube-system", "a") is None
    assert cluster.node("node-1") == NodeFacts("node-1", {"zone": "a"}) and cluster.node("default") is None
    assert cluster.namespace("default") == NamespaceFacts("default", {"kubernetes.io/metadata.name": "default"})
    assert cluster.namespace("node-1") is None
    assert [each.name for each in folder.snapshot.pods_of("node-1")] == ["a", "c"]
    assert [each.metadata.name for each in folder.snapshot.pools()] == ["second", "first"]
    assert [each.metadata.name for each in folder.snapshot.reservations()] == ["r"]


def test_only_yaml_files_of_the_folder_itself_count(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for path in ("a.yml", "b.json", ".c.yaml", "d.yaml~", "inside/e.yaml", "yaml", "f.YAML"):
        (tmp_path / path).write_text(pod("hidden"))
    (tmp_path / "shown.yaml").write_text(pod("shown"))
    assert names(read(tmp_path)) == ["shown"]


def test_links_are_followed_as_a_mounted_config_map_needs_it(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "pods.yaml").write_text(pod(f"pod-{version}"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "pods.yaml").symlink_to("..data/pods.yaml")
    folder = read(tmp_path)
    assert names(folder) == ["pod-1"]
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert folder.pod_now("default", "pod-1") is None
    assert names(folder) == ["pod-2"]


def test_nothing_is_synced_before_the_first_look(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert not folder.synced and not folder.snapshot.complete and folder.pod("default", "a") is None
    assert folder.refresh() == Changes()
    assert folder.synced and folder.snapshot.complete


def test_a_refresh_says_what_came_changed_and_left(tmp_path: Path) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text(together(pod("a"), pod("b"), pod("c")))
    folder = Folder(tmp_path)
    assert folder.refresh() == Changes(arrived=(key("a"), key("b"), key("c")))
    assert not folder.refresh()
    path.write_text(together(pod("a"), pod("b", node="node-2"), pod("d")))
    assert folder.refresh() == Changes(arrived=(key("d"),), changed=(key("b"),), left=(key("c"),))
    path.write_text(together("# only written otherwise", pod("d"), pod("a"), pod("b", node="node-2")))
    assert folder.refresh() == Changes()


def test_other_kinds_are_told_once(tmp_path: Path) -> None:
    other = "apiVersion: apps/v1\nkind: {}\nmetadata: {{name: x}}\n"
    (tmp_path / "a.yaml").write_text(together(other.format("DaemonSet"), pod("a"), other.format("DaemonSet")))
    (tmp_path / "b.yaml").write_text(other.format("DaemonSet"))
    folder = Folder(tmp_path)
    assert folder.refresh().passed_over == ("apps/v1 DaemonSet",)
    (tmp_path / "b.yaml").unlink()
    (tmp_path / "c.yaml").write_text(other.format("Deployment"))
    assert folder.refresh().passed_over == ("apps/v1 Deployment",)
    (tmp_path / "a.yaml").write_text(pod("a"))
    folder.refresh()
    (tmp_path / "a.yaml").write_text(together(pod("a"), other.format("DaemonSet")))
    assert folder.refresh() == Changes()
    assert folder.problems == ()


# Broken files


@pytest.mark.parametrize(("broken", "problem"), [
    ("", "pods.yaml: is empty; remove the file if its objects are to go"),
    ("  \n", "pods.yaml: is empty; remove the file if its objects are to go"),
    (together(pod("a"), "metadata: [\n"), "pods.yaml:7: while parsing a flow node, did not find expected node content"),
    (together(pod("a"), "- not an object\n"), "pods.yaml:6: is not an object (a mapping with apiVersion and kind)"),
    (together(pod("a"), pod("b", ", annotations: {note: 1}")),
     "pods.yaml:6: Pod: metadata.annotations.note: Input should be a valid string, not 1"),
])  # fmt: skip
def test_a_broken_file_is_named_and_keeps_what_it_said(tmp_path: Path, broken: str, problem: str) -> None:
    (tmp_path / "other.yaml").write_text(pod("other"))
    path = tmp_path / "pods.yaml"
    path.write_text(together(pod("a"), pod("b")))
    folder = read(tmp_path)
    before = dict(folder.snapshot.objects)
    path.write_text(broken)
    changes = folder.refresh()
    assert [str(each) for each in changes.problems] == texts(folder) == [problem]
    assert (changes.arrived, changes.changed, changes.left) == ((), (), ())
    assert dict(folder.snapshot.objects) == before and folder.pod_now("default", "b") is not None
    assert folder.snapshot.complete
    assert not folder.refresh() and texts(folder) == [problem]
    path.write_text(pod("b"))
    assert folder.refresh() == Changes(left=(key("a"),))
    assert folder.problems == ()


def test_while_a_file_has_never_been_readable_absence_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    (tmp_path / "b.yaml").write_text("[")
    folder = read(tmp_path)
    assert names(folder) == ["a"] and not folder.synced and not folder.snapshot.complete
    (tmp_path / "b.yaml").write_text(pod("b"))
    folder.refresh()
    assert folder.synced and folder.snapshot.complete
    (tmp_path / "c.yaml").write_text("[")
    folder.refresh()
    assert folder.synced and not folder.snapshot.complete
    (tmp_path / "c.yaml").unlink()
    folder.refresh()
    assert folder.snapshot.complete


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(("make", "problem"), [
    (make_folder, "x.yaml: is a folder"),
    (make_pipe, "x.yaml: is not a regular file"),
    (make_link, "x.yaml: is a link to nothing"),
    (make_circle, "x.yaml: cannot be read: Too many levels of symbolic links"),
])  # fmt: skip
def test_what_cannot_be_read_is_a_problem_and_the_rest_is_shown(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    path = tmp_path / "x.yaml"
    path.write_text(pod("x"))
    folder = read(tmp_path)
    path.unlink()
    make(path)
    folder.refresh()
    assert (names(folder), texts(folder)) == (["a", "x"], [problem])
    fresh = read(tmp_path)
    assert (names(fresh), texts(fresh), fresh.snapshot.complete) == (["a"], [problem], False)


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("[")
    assert texts(read(tmp_path)) == ["\\xff.yaml:2: while parsing a flow node, did not find expected node content"]


def test_the_problems_of_one_file_are_counted_when_they_are_many(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(together(*[pod(f"p{number}", ", uid: 1") for number in range(100)]))
    folder = read(tmp_path)
    assert len(folder.problems) == reading.PROBLEMS_PER_FILE_MAX + 1
    assert texts(folder)[-1] == "bad.yaml:101: and 80 more from here on"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x"), make_link, make_circle])
def test_a_folder_that_cannot_be_read_says_so_and_nothing_leaves(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "cluster"
    path.mkdir()
    (path / "a.yaml").write_text(pod("a"))
    folder = read(path)
    path.rename(tmp_path / "elsewhere")
    make(path)
    reasons = "(does not exist|is not a folder|cannot be read: Too many levels of symbolic links)"
    with pytest.raises(FolderError, match=rf"the cluster's folder .*/cluster {reasons}"):
        folder.refresh()
    with pytest.raises(FolderError):
        folder.pod_now("default", "a")
    assert folder.pod("default", "a") is not None
    path.unlink(missing_ok=True)
    (tmp_path / "elsewhere").rename(path)
    assert folder.refresh() == Changes()
    assert folder.pod_now("default", "a") is not None


# The same object twice


def test_the_same_object_in_two_files_counts_where_it_stands_first(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(together(pod("x"), pod("same", node="of-b")))
    (tmp_path / "c.yaml").write_text(pod("same", node="of-c"))
    folder = read(tmp_path)
    said = "Pod default/same already stands in b.yaml:6, and that one counts"
    assert texts(folder) == [f"c.yaml:1: {said}"]
    assert folder.snapshot.pods_of("of-b") and not folder.snapshot.pods_of("of-c")
    (tmp_path / "a.yaml").write_text(pod("same", node="of-a"))
    assert folder.refresh().changed == (key("same"),)
    assert [each.file for each in folder.problems] == ["b.yaml", "c.yaml"]
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "b.yaml").unlink()
    assert folder.refresh().left == (key("x"),)
    assert folder.problems == () and folder.snapshot.pods_of("of-c")


def test_the_same_object_twice_in_one_file_counts_where_it_stands_first(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(together(pod("same"), pod("same", node="second"), pod("same")))
    folder = read(tmp_path)
    assert [each.line for each in folder.problems] == [6, 11]
    assert [each.name for each in folder.snapshot.pods_of("node-1")] == ["same"]


# uids


def test_objects_without_a_uid_take_the_one_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(together(pod("none"), pod("own", uid="u-own"), pool("p"), pool("q", ", uid: u-q")))
    (tmp_path / "b.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n")
    snapshot = read(tmp_path).snapshot
    of_pool = ObjectKey("SpiderIPPool", "", "p")
    assert snapshot.without_uid == (key("none"), of_pool)
    named = snapshot.with_uids({key("none"): "u1", key("own"): "stolen", of_pool: "u2", key("gone"): "u3"})
    assert named.without_uid == ()
    assert [each.uid for each in named.pods_of("node-1")] == ["u1", "u-own"]
    assert [each.metadata.uid for each in named.pools()] == ["u2", "u-q"]
    assert named.node("node-1") == snapshot.node("node-1")
    assert list(named.objects) == list(snapshot.objects)
    assert snapshot.with_uids({}).without_uid == snapshot.without_uid
    assert snapshot.without_uid == (key("none"), of_pool)


# A pod as it is now


def test_a_pod_is_looked_up_again_when_its_file_was_removed_or_changed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    (tmp_path / "b.yaml").write_text(together(pod("b"), pod("c")))
    folder = read(tmp_path)
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "b.yaml").write_text(together(pod("b", ", deletionTimestamp: 2026-01-02T03:04:05Z"), pod("c")))
    assert folder.pod("default", "a") is not None
    assert folder.pod_now("default", "a") is None and folder.pod("default", "a") is None
    (b, c) = (folder.pod_now("default", name) for name in "bc")
    assert b is not None and not b.alive and c is not None and c.alive
    (tmp_path / "b.yaml").write_text(pod("c"))
    assert folder.pod_now("default", "b") is None
    assert folder.refresh() == Changes(left=(key("a"), key("b"))), "what pod_now has read is told by the next refresh"


def test_a_pod_that_nobody_has_seen_is_looked_for(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.pod_now("default", "a") is None
    (tmp_path / "a.yaml").write_text(pod("a"))
    assert folder.pod_now("default", "a") == PodFacts("default", "a", "", "node-1", {"of": "a"})


def test_a_pod_that_moved_to_another_file_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    folder = read(tmp_path)
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    assert folder.pod_now("default", "a") is not None
    assert folder.refresh() == Changes()


# Files that are being written


def whole(version: int) -> str:
    """A cluster of 300 pods that all say the same version."""
    return together(*[pod(f"p{number}", node=f"v{version}") for number in range(300)])


def atomically(path: Path, version: int) -> None:
    replace(path, whole(version))


def in_place(path: Path, version: int) -> None:
    path.write_text(whole(version))


def atomically_with_an_old_date(path: Path, version: int) -> None:
    """As a copy does that preserves dates: it is settled at once."""
    beside = path.with_name(".beside")
    beside.write_text(whole(version))
    os.utime(beside, (version, version))
    beside.replace(path)


WRITERS = [atomically, in_place, atomically_with_an_old_date]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_no_half_state_is_ever_shown_while_somebody_writes(tmp_path: Path, write: Callable[[Path, int], None]) -> None:
    path, last = tmp_path / "pods.yaml", 25
    path.write_text(whole(0))
    folder = read(tmp_path)

    def write_all() -> None:
        for version in range(1, last + 1):
            write(path, version)
            time.sleep(version % 5 / 50)  # Sometimes at once again, sometimes long enough for being read.

    seen: list[str] = []
    writer = threading.Thread(target=write_all)
    writer.start()
    while writer.is_alive():
        (folder.refresh if len(seen) % 2 else lambda: folder.pod_now("default", "p7"))()
        pods = [each for each in folder.snapshot.objects.values() if isinstance(each, PodFacts)]
        assert len(pods) == 300 and len({each.node for each in pods}) == 1
        seen.append(pods[0].node)
    writer.join()
    folder.refresh()
    seen.append(folder.snapshot.pods_of(f"v{last}")[299].node)
    versions = [int(each[1:]) for each in seen]
    assert versions == sorted(versions) and folder.problems == ()


def test_many_readers_see_whole_snapshots_while_files_change(tmp_path: Path) -> None:
    path, stop, failures = tmp_path / "pods.yaml", threading.Event(), list[BaseException]()
    path.write_text(whole(0))
    folder = read(tmp_path)

    def ask() -> None:
        try:
            while not stop.is_set():
                found = folder.pod_now("default", "p299")
                assert found is not None
                snapshot = folder.snapshot
                assert len(snapshot.pods_of(snapshot.pod("default", "p0").node)) == 300  # type: ignore[union-attr]
        except BaseException as failure:
            failures.append(failure)

    readers = [threading.Thread(target=ask) for _ in range(4)]
    for reader in readers:
        reader.start()
    for version in range(1, 11):
        replace(path, whole(version))
        folder.refresh()
    stop.set()
    for reader in readers:
        reader.join()
    folder.refresh()
    assert failures == [] and len(folder.snapshot.pods_of("v10")) == 300


@pytest.fixture
def slowly_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what happens while a file settles can be arranged."""
    monkeypatch.setattr(reading, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(reading, "READ_TRIES", 2)


def changed(path: Path, *, seconds_from_now: float) -> None:
    stamp = time.time() + seconds_from_now
    os.utime(path, (stamp, stamp))


@pytest.mark.usefixtures("slowly_settling")
def test_a_file_that_never_settles_keeps_what_it_said_and_is_read_when_it_does(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    changed(path, seconds_from_now=-5)
    folder = read(tmp_path)
    path.write_text(pod("b"))
    changed(path, seconds_from_now=0.9)  # Fresh at the first look, and still at the second, a second later.
    folder.refresh()
    assert (names(folder), texts(folder)) == (["a"], ["a.yaml: was being written each time it was looked at"])
    changed(path, seconds_from_now=-5)
    assert folder.refresh() == Changes(arrived=(key("b"),), left=(key("a"),))
    assert folder.problems == ()


@pytest.mark.usefixtures("slowly_settling")
def test_a_new_file_that_never_settles_is_not_taken_for_a_read_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    changed(tmp_path / "a.yaml", seconds_from_now=0.9)
    folder = read(tmp_path)
    assert not folder.synced and names(folder) == []
    changed(tmp_path / "a.yaml", seconds_from_now=-5)
    assert folder.pod_now("default", "a") is not None and folder.synced


@pytest.mark.usefixtures("slowly_settling")
def test_a_file_that_is_away_for_a_moment_has_not_left(tmp_path: Path) -> None:
    path, away = tmp_path / "a.yaml", tmp_path / "away"
    path.write_text(pod("a"))
    changed(path, seconds_from_now=-5)
    folder = read(tmp_path)
    path.rename(away)
    back = threading.Timer(0.2, away.rename, [path])
    back.start()
    assert folder.pod_now("default", "a") is not None
    back.join()
    assert folder.refresh() == Changes()


@pytest.mark.usefixtures("slowly_settling")
def test_a_date_far_ahead_is_another_clock_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    changed(tmp_path / "a.yaml", seconds_from_now=3600)
    assert names(read(tmp_path)) == ["a"]


def test_a_change_of_the_same_size_and_date_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    os.utime(path, (1, 1))
    folder = read(tmp_path)
    path.write_text(pod("b"))
    os.utime(path, (1, 1))
    folder.refresh()
    assert names(folder) == ["b"]


def test_a_file_that_changes_in_place_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(together(pod("a"), pod("b")))
    folder = read(tmp_path)
    path.write_text(together(pod("b"), pod("c")))
    half, rest = (lambda path: path.write_text(pod("b"))), (lambda path: path.write_text(together(pod("b"), pod("c"))))
    with just_before_reading(path, half, rest):
        assert folder.refresh() == Changes(arrived=(key("c"),), left=(key("a"),))


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    folder = Folder(tmp_path)
    with just_before_reading(path, lambda path: replace(path, pod("b"))):
        assert folder.refresh() == Changes(arrived=(key("b"),))
    assert not folder.refresh()


def test_a_file_that_is_moved_away_and_back_while_the_folder_is_listed_has_not_left(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("a"))
    folder = read(tmp_path)
    changed(tmp_path, seconds_from_now=-5)

    def away(path: Path) -> None:
        (path / "a.yaml").rename(path / "away")

    def back(path: Path) -> None:
        (path / "away").rename(path / "a.yaml")

    with just_before_reading(tmp_path, away, back):
        assert folder.refresh() == Changes()
    assert folder.pod("default", "a") is not None


def test_a_file_that_vanishes_while_it_is_read_has_left(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    folder = read(tmp_path)
    path.write_text(pod("b"))
    with just_before_reading(path, Path.unlink):
        assert folder.refresh() == Changes(left=(key("a"),))
    assert folder.problems == () and folder.snapshot.complete


def test_a_file_that_becomes_a_pipe_while_it_is_read_makes_nobody_wait(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    folder = Folder(tmp_path)

    def make_it_a_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    with just_before_reading(path, make_it_a_pipe):
        folder.refresh()
    assert texts(folder) == ["a.yaml: is not a regular file"]


def test_a_file_that_may_not_be_read_keeps_what_it_said_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(pod("a"))
    folder = read(tmp_path)
    path.write_text(pod("b"))

    def refuse(opened: Path) -> None:
        if opened == path:
            raise PermissionError(13, "Permission denied")

    with at_open(refuse):
        folder.refresh()
        assert (names(folder), texts(folder)) == (["a"], ["a.yaml: cannot be read: Permission denied"])
    assert folder.refresh() == Changes(arrived=(key("b"),), left=(key("a"),))
    assert folder.problems == ()


# Large clusters


def test_ten_thousand_pods_in_one_file_are_read_once_and_then_only_what_changed(tmp_path: Path) -> None:
    documents = [pod(f"p{number}") for number in range(MANY)]
    path = tmp_path / "pods.yaml"
    path.write_text(together(*documents))
    folder = Folder(tmp_path)
    assert len(folder.refresh().arrived) == MANY
    before = folder.snapshot
    with opened_in(tmp_path) as opened:
        assert not folder.refresh() and folder.snapshot is before
        assert folder.pod_now("default", "p5000") is before.pod("default", "p5000")
    assert opened == [tmp_path.name], "one listing for the refresh, none for pod_now"
    path.write_text(together(*documents[:5000], *documents[5001:]))
    assert folder.pod_now("default", "p5000") is None
    assert folder.refresh() == Changes(left=(key("p5000"),))
    assert all(folder.snapshot.objects[each] is before.objects[each] for each in folder.snapshot.objects)
    path.write_text(together(*documents[:5000], *documents[5001:], documents[17]))
    folder.refresh()
    last = 5 * (MANY - 1) + 1
    assert texts(folder) == [f"pods.yaml:{last}: Pod default/p17 already stands in pods.yaml:86, and that one counts"]


def test_ten_thousand_files_are_read_once_and_then_only_those_that_changed(tmp_path: Path) -> None:
    for number in range(MANY):
        (tmp_path / f"{number}.yaml").write_text(pod(f"p{number}"))
    folder = Folder(tmp_path)
    assert len(folder.refresh().arrived) == MANY
    assert folder.problems == () and folder.synced
    before = folder.snapshot
    folder.refresh()  # The folder itself may not have been settled before.
    with opened_in(tmp_path) as opened:
        assert not folder.refresh() and folder.snapshot is before
        assert folder.pod_now("default", "p5000") is not None
    assert opened == [tmp_path.name], "one listing for the refresh, none for pod_now"
    (tmp_path / "5000.yaml").unlink()
    replace(tmp_path / "17.yaml", pod("p17", node="node-2"))
    with opened_in(tmp_path) as opened:
        assert folder.pod_now("default", "p5000") is None
    assert set(opened) == {tmp_path.name, "17.yaml"}
    assert folder.refresh() == Changes(changed=(key("p17"),), left=(key("p5000"),))
