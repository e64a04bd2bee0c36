"""The pool of threads: every call right, threads that come and go, no races."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import engine.model.kernels
from engine.errors import KernelError
from engine.model.kernels.binding import Library, Team
from engine.model.kernels.build import usable_paths
from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packing import pack
from engine.model.operators import Norm

pytestmark = pytest.mark.timeout(300)

DEADLINE_S = 60
"""Longest wait for threads to end."""
WEIGHT = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(7, 10, 10, generator=torch.Generator().manual_seed(1))
SOURCES = Path(engine.model.kernels.__file__).parent
RACES = """
#include <stdio.h>
#include "pool.h"

enum { THREADS = 4, JOBS = 100000, ITEMS = 13 };
struct job { int64_t number, done[ITEMS], *by_thread; };

static void do_item(void *context, int64_t item, int thread)
{
    struct job *job = context;
    for (volatile int spin = 0; spin < 200; spin++) /* time for others to take an item */
        ;
    job->done[item] += job->number + item; /* nobody else may touch them: plain variables */
    job->by_thread[thread * 8]++;
}

int main(void)
{
    int64_t by_thread[THREADS * 8] = {0}, expected = 0, wrong = 0;
    struct pool *pool = pool_start(THREADS);
    for (int64_t number = 0; number < JOBS; number++) {
        struct job job = {.number = number, .by_thread = by_thread};
        const int64_t num_items = number % (ITEMS + 1);
        if (number % 1000 == 0) /* all sleep: some are woken */
            while (atomic_load(&pool->num_sleeping) < THREADS - 1)
                sched_yield();
        run(pool, do_item, &job, num_items);
        for (int64_t item = 0; item < ITEMS; item++)
            wrong += job.done[item] != (item < num_items ? number + item : 0);
        expected += num_items;
    }
    pool_stop(pool);
    for (int thread = 0; thread < THREADS; thread++)
        expected -= by_thread[thread * 8];
    printf("%d wrong, %d lost\\n", (int)wrong, (int)expected);
    return wrong || expected;
}
"""
FORK = """
import os
import signal
import sys
import torch
from engine.model.kernels.binding import Team, best_library
team = Team(best_library(torch.float32), 3)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(30)  # nobody else would end it
"""


@pytest.fixture(scope="module")
def library(kernel_flags) -> Library:
    """The kernels that this machine would use."""
    return Library(usable_paths()[0], torch.float32, kernel_flags)


def num_wrong(library: Library, num_threads: int, num_calls: int) -> int:
    """How many of so many calls of two jobs each, on inputs that change, give something else."""
    norm = Norm(torch.ones(10), 1e-5)
    weight = pack(WEIGHT, library.depth)
    layer = NativeLinear(library, Team(library, num_threads), weight, norm=norm)
    expected = [layer(x) for x in INPUTS]
    torch.testing.assert_close(expected[3], F.rms_norm(INPUTS[3], (10,), eps=1e-5) @ WEIGHT.T)
    calls = [call % len(INPUTS) for call in range(num_calls)]
    return sum(not torch.equal(layer(INPUTS[index]), expected[index]) for index in calls)


def threads() -> set[str]:
    """Ids of the threads of this process, as the system counts them."""
    return set(os.listdir("/proc/self/task"))


def test_twenty_thousand_small_calls(library):
    assert num_wrong(library, num_threads=3, num_calls=20_000) == 0


def test_more_threads_than_cores(library):
    num_threads = 8 * (os.cpu_count() or 1)
    assert num_wrong(library, num_threads, num_calls=500) == 0


def test_two_teams_in_two_threads(library):
    start = threading.Barrier(2)

    def work(num_threads: int) -> int:
        start.wait()
        return num_wrong(library, num_threads, num_calls=5_000)

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(work, (2, 3))) == [0, 0]


def test_the_threads_of_a_team_end_with_it(library):
    before = threads()
    team = Team(library, 4)
    started = threads() - before
    assert len(started) == 3
    del team
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while threads() & started:  # joined, but the system may still list them
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_forked_process_ends_although_it_has_no_such_threads():
    # Not with the address sanitizer: in a forked process it waits for locks of lost threads.
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    subprocess.run(command, env=without_preload(), timeout=DEADLINE_S, check=True)


@pytest.mark.parametrize("num_threads", [0, 1025])
def test_a_number_of_threads_that_cannot_be_had(library, num_threads):
    before = threads()
    with pytest.raises(KernelError, match=f"cannot start {num_threads} threads"):
        Team(library, num_threads)
    assert threads() <= before


def test_the_thread_sanitizer_finds_no_race(tmp_path):
    program = compile_with_sanitizer(RACES, tmp_path)
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        env=without_preload(),
        timeout=DEADLINE_S,
        check=False,
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.stdout == "0 wrong, 0 lost\n", done.stderr
    assert done.returncode == 0, done.stderr


def without_preload() -> dict[str, str]:
    """The environment, without another sanitizer than the program's own."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def compile_with_sanitizer(text: str, directory: Path) -> Path:
    """A C program that sees the kernels' headers."""
    source, program = directory / "program.c", directory / "program"
    compiler = shutil.which("gcc") or "cc"
    flags = ["-std=gnu11", "-O1", "-g", "-pthread", "-fsanitize=thread", f"-I{SOURCES}"]
    source.write_text("int main(void) { return 0; }")
    if subprocess.run([compiler, *flags, source, "-o", program], capture_output=True).returncode:
        pytest.skip(f"{compiler} has no thread sanitizer")
    source.write_text(text)
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    return program
