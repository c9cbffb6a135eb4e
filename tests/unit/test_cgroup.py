"""Unit: control groups of version 2, against a simulated kernel that enforces their rules in a folder."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from environments.limits.cgroup import Delegation, Files
from environments.limits.limits import Enforcement, LimitKeeper, Limits

ALL = "cpuset cpu io memory pids"
SELF = os.getpid()
LIMIT_FILES = {
    "memory": ("memory.max", "memory.swap.max", "memory.oom.group"),
    "cpu": ("cpu.max",),
    "pids": ("pids.max",),
}


class Kernel(Files):
    """Control groups in a folder: moves processes, delegates controllers, and refuses what the kernel refuses."""

    def __init__(self, mount, *, delegated=()):
        self.mount = mount
        self.marked = set(delegated)
        self.operations = 0
        self.fails_at = None
        self._fill(mount, ALL)
        (mount / "cgroup.type").unlink()  # as the root has none

    def _fill(self, group, controllers):
        group.mkdir(exist_ok=True)
        files = {"type": "domain", "controllers": controllers, "procs": "", "subtree_control": ""}
        for name, text in files.items():
            (group / f"cgroup.{name}").write_text(text + "\n")
        for controller in controllers.split() if group != self.mount else ():
            for name in LIMIT_FILES.get(controller, ()):
                (group / name).write_text("max\n")

    def _step(self):
        self.operations += 1
        if self.operations == self.fails_at:
            raise OSError(errno.EIO, "injected")

    def add(self, name, *pids):
        """Make a group as a service manager does, with these processes."""
        group = self.mount / name
        for parent in reversed([p for p in group.relative_to(self.mount).parents if p.name]):
            self._fill(self.mount / parent, ALL)
            (self.mount / parent / "cgroup.subtree_control").write_text(ALL)
        self._fill(group, ALL)
        (group / "cgroup.procs").write_text("\n".join(map(str, pids)))
        return group

    def procs(self, group):
        return self.read(group / "cgroup.procs").split()

    def make(self, group):
        self._step()
        if not group.exists():
            self._fill(group, (group.parent / "cgroup.subtree_control").read_text().strip())

    def remove(self, group):
        self._step()
        if self.procs(group) or self.below(group):
            raise OSError(errno.EBUSY, "has processes or groups")
        shutil.rmtree(group)

    def write(self, path, text):
        self._step()
        group = path.parent
        given = set((group / "cgroup.subtree_control").read_text().split())
        if path.name == "cgroup.procs":
            if given and group != self.mount:
                raise OSError(errno.EBUSY, "internal processes")
            for other in self.mount.rglob("cgroup.procs"):
                other.write_text("\n".join(pid for pid in other.read_text().split() if pid != text))
            path.write_text("\n".join([*self.procs(group), text]))
        elif path.name == "cgroup.subtree_control":
            for change in text.split():
                self._give(group, given, change[0], change[1:])
            path.write_text(" ".join(sorted(given)))
            for below in self.below(group):
                (below / "cgroup.controllers").write_text(" ".join(sorted(given)))
        else:
            path.write_text(text)

    def _give(self, group, given, sign, controller):
        if controller not in self.read(group / "cgroup.controllers").split():
            raise OSError(errno.ENOENT, "no such controller")
        if sign == "+" and self.procs(group) and group != self.mount:
            raise OSError(errno.EBUSY, "internal processes")
        if sign == "-" and any(controller in self.read(g / "cgroup.subtree_control") for g in self.below(group)):
            raise OSError(errno.EBUSY, "used below")
        (given.add if sign == "+" else given.discard)(controller)

    def delegated(self, group):
        return group.relative_to(self.mount).as_posix() in self.marked

    def tree(self):
        """Return the whole state, for comparison."""
        return {
            str(path.relative_to(self.mount)): sorted(path.read_text().split()) for path in self.mount.rglob("cgroup.*")
        }


OWN = "system.slice/operato.service"


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path / "cgroup", delegated=[OWN])


def opened(kernel, own="/" + OWN, name="operato-7"):
    return Delegation.open(kernel.mount, own, name, [SELF], kernel)


def test_a_delegated_service_moves_into_a_leaf_and_back(kernel):
    service = kernel.add(OWN, SELF)
    before = kernel.tree()

    delegation = opened(kernel)

    assert delegation.group == service
    assert delegation.controllers == {"memory", "cpu", "pids"}
    assert kernel.procs(service) == []
    assert kernel.procs(service / "operato-7-runner") == [str(SELF)]
    assert kernel.read(service / "cgroup.subtree_control").split() == ["cpu", "memory", "pids"]

    delegation.close()
    assert kernel.tree() == before
    delegation.close()
    assert kernel.tree() == before, "twice is once"


def test_the_root_of_a_namespace_is_a_group_like_any_other(kernel):
    container = kernel.add("docker/abc", SELF)

    delegation = Delegation.open(container, "/", "operato-7", [SELF], kernel)

    assert delegation.group == container
    assert kernel.procs(container / "operato-7-runner") == [str(SELF)]


def test_controllers_that_are_given_already_are_not_given_or_taken(kernel):
    service = kernel.add(OWN)
    (service / "cgroup.subtree_control").write_text("cpu memory pids")
    before = kernel.tree()

    delegation = opened(kernel)
    assert kernel.tree() == before, "nothing had to be arranged"
    delegation.close()
    assert kernel.tree() == before


def test_only_what_is_offered_is_used(kernel):
    service = kernel.add(OWN, SELF)
    (service / "cgroup.controllers").write_text("memory io")

    delegation = opened(kernel)

    assert delegation.controllers == {"memory"}
    assert kernel.read(service / "cgroup.subtree_control").split() == ["memory"]


UNUSABLE = {
    "the kernel's root": lambda kernel: "/",
    "a group of somebody else": lambda kernel: (
        kernel.add("user.slice/session-3.scope", SELF) and "/user.slice/session-3.scope"
    ),
    "another process in it": lambda kernel: kernel.add(OWN, SELF, 1) and f"/{OWN}",
    "no controller": lambda kernel: (kernel.add(OWN, SELF) / "cgroup.controllers").write_text("io") and f"/{OWN}",
    "a threaded group": lambda kernel: (kernel.add(OWN, SELF) / "cgroup.type").write_text("threaded") and f"/{OWN}",
    "a path of the host": lambda kernel: "/not/here",
}


@pytest.mark.parametrize("prepare", UNUSABLE.values(), ids=UNUSABLE)
def test_what_may_not_or_cannot_be_used_is_left_as_it_was(kernel, prepare):
    own = prepare(kernel)
    before = kernel.tree()

    assert opened(kernel, own) is None
    assert kernel.tree() == before


def test_each_failure_on_the_way_is_undone(tmp_path):
    for step in range(1, 20):
        kernel = Kernel(tmp_path / f"cgroup{step}", delegated=[OWN])
        service = kernel.add(OWN, SELF)
        before = kernel.tree()
        kernel.fails_at = step
        delegation = opened(kernel)
        if delegation is not None:
            break
        assert str(SELF) in kernel.procs(service), f"step {step}: the runner was left in a leaf"
        left = {name: value for name, value in kernel.tree().items() if "-probe" not in name}
        assert left == before, f"step {step}"
    assert step == 6, "there are five operations"


def test_what_killed_runners_left_is_removed(kernel):
    gone, alive = 2**22 + 1, os.getppid()
    service = kernel.add(OWN, SELF)
    for name in (f"operato-{gone}-3", f"operato-{gone}-runner", f"operato-{alive}-1", "other"):
        kernel.add(f"{OWN}/{name}")
    kernel.add(f"{OWN}/operato-{gone}-4", 1)
    (service / "cgroup.procs").write_text(str(SELF))
    (service / "cgroup.subtree_control").write_text("")

    opened(kernel)

    left = {path.name for path in kernel.below(service)}
    assert left == {f"operato-{gone}-4", f"operato-{alive}-1", "other", "operato-7-runner"}


def test_the_watcher_moves_with_the_runner(kernel):
    service = kernel.add(OWN, SELF, 4711)
    before = kernel.tree()

    keeper = LimitKeeper("operato-7", watcher=4711, groups={"": f"/{OWN}"}, mounts={"": kernel.mount}, files=kernel)

    assert keeper.enforcement.memory == "cgroup-v2"
    assert kernel.procs(service) == []
    assert kernel.procs(service / "operato-7-runner") == [str(SELF), "4711"]
    keeper.close()
    assert kernel.tree() == before


def test_groups_of_version_1_that_killed_runners_left_are_removed(tmp_path):
    gone, alive = 2**22 + 1, os.getppid()
    for name in (f"operato-{gone}-3", f"operato-{alive}-1", "other"):
        (tmp_path / name).mkdir()

    LimitKeeper("operato-7", groups={"pids": "/"}, mounts={"pids": tmp_path})

    assert {path.name for path in tmp_path.iterdir()} == {f"operato-{alive}-1", "other"}


def test_limits_are_written_and_the_groups_go_again(kernel):
    service = kernel.add(OWN, SELF)
    before = kernel.tree()
    keeper = LimitKeeper("operato-7", groups={"": f"/{OWN}"}, mounts={"": kernel.mount}, files=kernel)
    assert keeper.enforcement == Enforcement("cgroup-v2", "cgroup-v2", "cgroup-v2")

    hold = keeper.apply(4242, Limits(memory_bytes=100_000_000, cpus=0.5, processes=3))

    group = service / "operato-7-1"
    assert kernel.procs(group) == ["4242"]
    said = {name: (group / name).read_text() for names in LIMIT_FILES.values() for name in names}
    assert said == {
        "memory.max": "100000000",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "pids.max": "4",
    }
    assert not hold.watched()
    assert hold.exceeded() is None
    (group / "memory.events").write_text("oom 1\noom_kill 1\n")
    assert "memory limit of 100000000B (`memory`)" in hold.exceeded()

    (group / "cgroup.procs").write_text("")  # it has ended
    hold.release()
    keeper.close()
    assert kernel.tree() == before


def test_what_version_2_does_not_offer_is_taken_from_version_1_or_watched(kernel, tmp_path):
    service = kernel.add(OWN, SELF)
    (service / "cgroup.controllers").write_text("memory")
    (tmp_path / "pids" / "here").mkdir(parents=True)
    mounts = {"": kernel.mount, "pids": tmp_path / "pids"}

    keeper = LimitKeeper("operato-7", groups={"": f"/{OWN}", "pids": "/here"}, mounts=mounts, files=Plain(kernel))

    assert keeper.enforcement == Enforcement("cgroup-v2", "affinity", "cgroup-v1")


class Plain(Files):
    """A kernel with version 2 below its mount, and plain folders elsewhere."""

    def __init__(self, kernel):
        self.kernel = kernel

    def _for(self, path):
        return self.kernel if path.is_relative_to(self.kernel.mount) else super()

    def make(self, group):
        self._for(group).make(group)

    def remove(self, group):
        self._for(group).remove(group)

    def write(self, path, text):
        self._for(path).write(path, text)

    def delegated(self, group):
        return self.kernel.delegated(group)


def test_without_any_group_everything_is_watched():
    keeper = LimitKeeper("operato-7", groups={}, mounts={})

    assert keeper.enforcement == Enforcement("watched", "affinity", "watched")
    keeper.close()


def test_the_message_of_a_watcher_names_the_field():
    keeper = LimitKeeper("operato-7", groups={}, mounts={})

    hold = keeper.apply(os.getppid(), Limits(processes=0))

    assert hold.watched()
    assert hold.exceeded() == "the execution started more than 0 processes; the limit is the field `processes`"


def test_a_user_owns_what_was_delegated_to_it(tmp_path, monkeypatch):
    if os.getuid() == 0:
        os.chown(tmp_path, 4000, -1)
    owner = tmp_path.stat().st_uid

    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert Files().delegated(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert not Files().delegated(tmp_path)


def test_for_root_the_service_manager_must_have_marked_it(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not Files().delegated(tmp_path), "root owns everything, which says nothing"
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if name == "trusted.delegate" else b"")
    assert Files().delegated(tmp_path)
