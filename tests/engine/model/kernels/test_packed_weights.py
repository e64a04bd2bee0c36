"""Weights that are packed once, in a file of the cache that processes share."""

import errno
import fcntl
import hashlib
import mmap
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoints.directory import read_facts
from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint
from engine.errors import ModelError
from engine.model import parameters
from engine.model.kernels.packed_file import Form, PackedFile
from engine.model.kernels.packed_weights import PackedWeights
from engine.model.kernels.packing import LAYOUT_VERSION, pack
from engine.model.loader import Checkpoint
from tests.engine.families import FAMILIES, write_model

pytestmark = pytest.mark.timeout(120)

FORMS = [
    Form(torch.float32, 1, quantized=False),
    Form(torch.bfloat16, 2, quantized=False),
    Form(torch.bfloat16, 2, quantized=True),
]
FORM = FORMS[1]
LAYOUT = 1, "ff2405eaca965f8c"
"""The layout's version, and what it makes of some numbers."""
FAULT_AROUND_KB = 64
"""The system maps pages beside one that is read; which ones differs from process to process."""
RANK = """
import logging, sys
from pathlib import Path
import torch
from engine.checkpoints.directory import read_facts
from engine.model.kernels.packed_file import Form
from engine.model.kernels.packed_weights import PackedWeights

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
directory = Path(sys.argv[1])
weights = PackedWeights(directory, read_facts(directory), Form(torch.bfloat16, 2, False))
print("sum", sum(float(tensor.double().sum()) for tensor in weights._tensors.values()))
print("remark", weights.remark)
print(Path("/proc/self/smaps").read_text())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the directory that will hold the packed weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flotilla" / "packed"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    write_random_checkpoint(path, TINY_FACTS, seed=1)
    return path


def load(directory: Path, form: Form = FORM) -> PackedWeights:
    return PackedWeights(directory, read_facts(directory), form)


def packed(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.name[0] != "."]


def writable(cache: Path) -> Path:
    """The only file of packed weights, which may be written to now."""
    [made] = packed(cache)
    [file] = made.glob("*.safetensors")
    file.chmod(0o600)
    return file


def start_rank(directory: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", RANK, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check(weights: PackedWeights, directory: Path, form: Form) -> None:
    """Every parameter is that of the checkpoint."""
    facts, checkpoint = (
        read_facts(directory),
        Checkpoint(directory, form.dtype, torch.device("cpu")),
    )
    for name in parameters.vectors(facts):
        assert torch.equal(weights.tensor(name), checkpoint.tensor(name))
    for matrix in parameters.matrices(facts):
        depth = 2 if form.quantized else form.depth
        expected = pack(checkpoint.matrix(matrix), depth, matrix.gated, form.quantized)
        found = weights.matrix(matrix)
        assert torch.equal(found.weight, expected.weight)
        assert found[2:] == expected[2:]
        assert (found.scales is None) == (not form.quantized)
        if found.scales is not None and expected.scales is not None:
            assert torch.equal(found.scales, expected.scales)
    if weights.has_embedding:
        rows = weights.tensor(parameters.EMBEDDING)
        assert torch.equal(rows, checkpoint.tensor(parameters.EMBEDDING))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("form", FORMS, ids=["f32", "bf16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_parameters_of_every_family_are_in_the_file(tmp_path, family, form):
    directory = tmp_path / "model"
    write_model(directory, FAMILIES[family], seed=1)
    weights = load(directory, form)
    check(weights, directory, form)
    assert not weights.remark
    needs_rows = form.quantized or not read_facts(directory).tie_word_embeddings
    assert weights.has_embedding == needs_rows


def test_a_second_process_maps_the_same_memory(cache, directory):
    weights = load(directory)
    assert all(tensor.double().sum().isfinite() for tensor in weights._tensors.values())
    rank = start_rank(directory)
    output, _ = rank.communicate(timeout=60)
    assert rank.returncode == 0, output
    assert "packing" not in output
    [mapping] = re.findall(rf"^\S+ (\S+) .*{cache}.*\n((?:\w+: .*\n)+)", output, re.MULTILINE)
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", mapping[1]))
    assert mapping[0] == "r--s"
    assert int(sizes["Rss"]) > 0
    assert int(sizes["Private_Dirty"]) == 0
    private = int(sizes["Private_Clean"])
    assert private <= FAULT_AROUND_KB
    assert int(sizes["Pss"]) * 2 <= int(sizes["Rss"]) + private + 4


def test_of_ranks_that_start_at_once_one_packs(cache, directory):
    ranks = [start_rank(directory) for _ in range(4)]
    outputs = [rank.communicate(timeout=90)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, outputs
    assert sum(output.count("packing") for output in outputs) == 1
    assert len({tuple(re.findall("^sum .*", output, re.MULTILINE)) for output in outputs}) == 1
    assert len(packed(cache)) == 1


def test_the_file_is_this_users_alone(cache, directory):
    load(directory)
    [made] = packed(cache)
    assert made.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in made.glob("*.safetensors")] == [0o400]


@pytest.mark.usefixtures("cache")
def test_weights_are_not_packed_twice(directory, monkeypatch):
    load(directory)
    monkeypatch.setattr(PackedFile, "write", lambda *_: pytest.fail("packed again"))
    load(directory)


def test_a_checkpoint_edited_in_place_is_packed_anew_and_the_old_one_removed(cache, directory):
    before = load(directory)
    [old] = packed(cache)
    file = directory / "model.safetensors"
    status = file.stat()
    with file.open("r+b") as content:  # the same size, and the time is set back
        content.seek(-1000, os.SEEK_END)
        content.write(bytes(1000))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = load(directory)
    check(after, directory, FORM)
    assert any(not torch.equal(before.tensor(name), after.tensor(name)) for name in after._tensors)
    assert old not in packed(cache)
    assert len(packed(cache)) == 1
    assert len(list(cache.glob("*.lock"))) == 1


def test_what_a_killed_build_has_left_is_removed_by_the_next_one(cache, directory):
    left = cache / ".0123.abcd" / "new"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half of it")
    (cache / "0123.lock").touch()
    with (cache / "4567.lock").open("w") as lock:  # somebody is at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        (cache / ".4567.abcd").mkdir()
        load(directory)
    [made] = packed(cache)
    names = {path.name for path in cache.iterdir()}
    assert names == {made.name, f"{made.name}.lock", "4567.lock", ".4567.abcd"}


def test_forms_of_one_checkpoint_are_kept_side_by_side(cache, directory):
    for form in FORMS:
        load(directory, form)
    assert len(packed(cache)) == len(FORMS)


def test_a_file_that_was_cut_short_is_made_again(cache, directory):
    load(directory)
    os.truncate(writable(cache), 5000)
    weights = load(directory)
    check(weights, directory, FORM)
    assert not weights.remark


def test_a_file_that_says_it_is_another_is_not_used(cache, directory):
    load(directory)
    file = writable(cache)
    with file.open("r+b") as content:
        content.seek(100)
        content.write(b"?")
    weights = load(directory)
    check(weights, directory, FORM)
    assert "not the packed weights" in weights.remark
    assert f"remove {file.parent}" in weights.remark


@pytest.mark.parametrize("length", [2**40, 2**63], ids=["memory", "size"])
def test_a_damaged_file_of_another_form_is_removed_when_weights_are_packed(
    cache, directory, length
):
    load(directory)
    file = writable(cache)
    with file.open("r+b") as content:
        content.write(length.to_bytes(8, "little"))
    load(directory, FORMS[0])
    assert not file.exists()
    assert len(packed(cache)) == 1


def test_a_file_that_others_can_write_is_not_used(cache, directory):
    load(directory)
    [made] = packed(cache)
    made.chmod(0o770)
    weights = load(directory)
    check(weights, directory, FORM)
    assert f"others than this user can write {made}," in weights.remark
    assert f"chmod go-w {made}" in weights.remark


def test_a_file_that_cannot_be_mapped_is_not_used(cache, directory, monkeypatch):
    map_file = mmap.mmap

    def map_memory_alone(fd, *args, **options):
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(cache)):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return map_file(fd, *args, **options)

    monkeypatch.setattr(mmap, "mmap", map_memory_alone)
    weights = load(directory)
    check(weights, directory, FORM)
    [made] = packed(cache)
    assert f"cannot map {made}" in weights.remark
    assert "No such device" in weights.remark
    assert "XDG_CACHE_HOME=DIR" in weights.remark


@pytest.mark.parametrize("form", FORMS, ids=["f32", "bf16", "int8"])
def test_without_a_cache_weights_are_packed_in_memory_and_a_remark_says_so(
    cache, directory, form, caplog
):
    cache.parents[1].write_text("in its place")
    weights = load(directory, form)
    check(weights, directory, form)
    assert "which ranks do not share" in weights.remark
    assert "XDG_CACHE_HOME=DIR" in weights.remark
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "cannot write the cache" in warning.getMessage()


@pytest.mark.usefixtures("cache")
def test_a_checkpoint_that_changes_while_it_is_packed_is_refused(directory, monkeypatch, caplog):
    write, num_packed = PackedFile.write, 0

    def disturbed(self, file, weights):
        nonlocal num_packed
        num_packed += 1
        write(self, file, weights)
        os.utime(directory / "model.safetensors")

    monkeypatch.setattr(PackedFile, "write", disturbed)
    with pytest.raises(ModelError, match="written to while they were read") as error:
        load(directory)
    assert "start again" in error.value.hint
    assert num_packed == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_checkpoint_that_lacks_a_tensor_leaves_nothing_in_the_cache(cache, directory):
    facts = read_facts(directory)
    larger = replace(facts, num_hidden_layers=facts.num_hidden_layers + 1)
    with pytest.raises(ModelError, match="has no tensor"):
        PackedWeights(directory, larger, FORM)
    assert packed(cache) == []


def test_a_layout_that_changes_has_another_version():
    numbers = torch.arange(70 * 9, dtype=torch.float32).view(70, 9) - 300
    digest = hashlib.sha256()
    for depth, gated, quantized in ((1, False, False), (2, True, False), (2, True, True)):
        matrix = pack(numbers, depth, gated, quantized)
        digest.update(matrix.weight.numpy().tobytes())
        if matrix.scales is not None:
            digest.update(matrix.scales.numpy().tobytes())
    assert (LAYOUT_VERSION, digest.hexdigest()[:16]) == LAYOUT
