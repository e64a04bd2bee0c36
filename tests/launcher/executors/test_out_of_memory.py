"""Reading the kernel's count of processes killed for want of memory."""

from pathlib import Path

from launcher.executors.out_of_memory import num_oom_kills

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n"


def kernel(root: Path, groups: str, directory: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    events = root / "sys/fs/cgroup" / directory / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text(EVENTS)
    return root


def test_the_kills_of_our_control_group_are_counted(tmp_path):
    assert num_oom_kills(kernel(tmp_path, "1:cpu:/\n0::/user.slice/a\n", "user.slice/a")) == 3


def test_a_container_sees_its_group_as_the_root(tmp_path):
    assert num_oom_kills(kernel(tmp_path, "0::/\n", "")) == 3


def test_where_nobody_counts_there_are_none(tmp_path):
    assert num_oom_kills(tmp_path) == 0
    assert num_oom_kills(kernel(tmp_path, "4:memory:/a\n0::/b\n", "a")) == 0
    assert num_oom_kills() >= 0
