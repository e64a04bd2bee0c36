"""Every mistake on the command line: exit 2, a line naming key and value, a hint that works."""

import shlex

import pytest

from launcher.config_checks import check
from tests.launcher.samples import composed

OPTIONS = "python -m launcher --help explains every option"
WRITTEN = "an override is written key=value, such as dp=2"

NO_MODEL = "model must be one of dummy, hub, path, smollm2_135m, tiny"
NO_CI = (
    "ci must be one of mp_head_only, mp_int8, mp_real_model, mp_scale_out, ray_auto, ray_head_only,"
    " ray_remote_only, ray_split"
)
NO_TOPOLOGY = "topology must be one of auto, head_only, remote_only, split"

MISTAKES = [
    # Names that are nearly right.
    ("dpp=2", "there is no option dpp: dpp=2", "dp=2"),
    ("modelx=tiny", "there is no option modelx: modelx=tiny", "model=tiny"),
    (
        "profile.max_num_seq=3",
        "there is no option profile.max_num_seq: profile.max_num_seq=3",
        "profile.max_num_seqs=3",
    ),
    ("max_num_seqs=3", "there is no option max_num_seqs: max_num_seqs=3", "profile.max_num_seqs=3"),
    (
        "heath.silence_s=3",
        "there is no option heath.silence_s: heath.silence_s=3",
        "health.silence_s=3",
    ),
    ("port=1", "there is no option port: port=1", "frontend.port=1"),
    ("dtyp=bf16", "there is no option dtyp: dtyp=bf16", "engine.dtype=bfloat16"),
    ("foo=1", "there is no option foo: foo=1", OPTIONS),
    ("+foo=1", "there is no option foo: +foo=1", OPTIONS),
    ("tp.x=2", "there is no option tp.x: tp.x=2", OPTIONS),
    (
        "profile={max_num_seq:3}",
        "there is no option profile.max_num_seq: profile={max_num_seq:3}",
        "profile.max_num_seqs=3",
    ),
    # Choices.
    ("topology=head_onyl", f"{NO_TOPOLOGY}: head_onyl", "topology=head_only"),
    ("topology=spilt", f"{NO_TOPOLOGY}: spilt", "topology=split"),
    ("backend=rya", "backend must be one of mp, ray: rya", "backend=ray"),
    (
        "backend.grow_deadline_s=3",
        "backend.grow_deadline_s is no option of backend=mp: backend.grow_deadline_s=3",
        "backend=ray backend.grow_deadline_s=3",
    ),
    (
        "cluster.nodes=3",
        "cluster.nodes is no option of cluster=auto: cluster.nodes=3",
        "cluster=emulated cluster.nodes=3",
    ),
    (
        "model=tinny",
        "model must be one of dummy, hub, path, smollm2_135m, tiny: tinny",
        "model=tiny",
    ),
    ("model=/some/path", f"{NO_MODEL}: /some/path", "model=path model.path=/some/path"),
    ("model=./x", f"{NO_MODEL}: ./x", "model=path model.path=./x"),
    ("model=x/", f"{NO_MODEL}: x/", "model=path model.path=x/"),
    ("model=~/x y", f"{NO_MODEL}: ~/x y", "model=path 'model.path=\"~/x y\"'"),
    ("model=owner/Name-1.5", f"{NO_MODEL}: owner/Name-1.5", "model=hub model.repo=owner/Name-1.5"),
    (
        "--model=/some/path",
        "there is no flag --model: --model=/some/path",
        "options are overrides, without dashes: model=path model.path=/some/path",
    ),
    (
        "profile=null",
        "profile must be one of default, high_throughput, low_latency: null",
        "profile=default",
    ),
    (
        "engine.dtype=bf16",
        "engine.dtype must be one of auto, float32, bfloat16, float16: bf16",
        "engine.dtype=bfloat16",
    ),
    (
        "engine.device=gpu",
        "engine.device must be one of auto, cuda, cpu: gpu",
        "engine.device=cuda",
    ),
    (
        "action=benchmark",
        "action must be one of serve, plan, smoke, bench, compare, status, stop: benchmark",
        "action=bench",
    ),
    (
        "cluster.path=x",
        "cluster.path is no option of cluster=auto: cluster.path=x",
        "cluster=file cluster.path=x",
    ),
    # A group without a default.
    ("+ci=mp_scale_ot", f"{NO_CI}: mp_scale_ot", "+ci=mp_scale_out"),
    ("ci=mp_scale_ot", f"{NO_CI}: mp_scale_ot", "+ci=mp_scale_out"),
    (
        "ci=mp_scale_out",
        "ci has no default, it is written with one +: ci=mp_scale_out",
        "+ci=mp_scale_out",
    ),
    (
        "++ci=mp_scale_out",
        "ci has no default, it is written with one +: ++ci=mp_scale_out",
        "+ci=mp_scale_out",
    ),
    ("+cii=mp_scale_out", "there is no option cii: +cii=mp_scale_out", "+ci=mp_scale_out"),
    ("mp_scale_out", "not an override: mp_scale_out", "+ci=mp_scale_out"),
    (
        "--ci=mp_scale_out",
        "there is no flag --ci: --ci=mp_scale_out",
        "options are overrides, without dashes: +ci=mp_scale_out",
    ),
    # Types.
    ("dp=two", "dp must be a whole number: two", "dp=1"),
    ("dp=", "dp must be a whole number: (empty)", "dp=1"),
    ("dp=null", "dp must be a whole number: null", "dp=1"),
    ("dp=1.5", "dp must be a whole number: 1.5", "dp=1"),
    ("dp=[1,2]", "dp must be a whole number: [1, 2]", "dp=1"),
    ("drain_s=long", "drain_s must be a number: long", "drain_s=30.0"),
    (
        "profile.prefix_caching=maybe",
        "profile.prefix_caching must be true or false: maybe",
        "profile.prefix_caching=true",
    ),
    (
        "health=null",
        "health holds options, it takes no value itself: null",
        "health.heartbeat_s=0.2",
    ),
    # Hydra's grammar.
    ("foo", "not an override: foo", WRITTEN),
    ("plan", "not an override: plan", "action=plan"),
    ("tiny", "not an override: tiny", "model=tiny"),
    ("dp=[1", "dp must be a whole number: [1", "dp=1"),
    (
        "model.path=/a=b",
        "model.path has a value that must be quoted: model.path=/a=b",
        "'model.path=\"/a=b\"'",
    ),
    ("model=/a=b", f"{NO_MODEL}: /a=b", "model=path 'model.path=\"/a=b\"'"),
    # Neither does it allow anything but ASCII.
    ("model=tïny", f"{NO_MODEL}: tïny", "model=tiny"),
    ("model=模/型", f"{NO_MODEL}: 模/型", "model=path 'model.path=\"模/型\"'"),
    ("modèl=tiny", "there is no option modèl: modèl=tiny", "model=tiny"),
    ("+ci=é", f"{NO_CI}: é", "+ci=mp_head_only"),
    ("tïny", "not an override: tïny", "model=tiny"),
    ("é=1", "there is no option é: é=1", OPTIONS),
    ("é.dp=1", "there is no option é.dp: é.dp=1", "dp=1"),
    ("dp=２", "dp must be a whole number: ２", "dp=1"),
    ("~é", "nothing can be taken away with ~: ~é", OPTIONS),
    (
        "model.name=é",
        "model.name has a value that must be quoted: model.name=é",
        "'model.name=\"é\"'",
    ),
    ("model=ti\nny", f"{NO_MODEL}: ti\\nny", "model=tiny"),
    ("model=\udcff", f"{NO_MODEL}: \\udcff", "model=smollm2_135m"),
    ("a b=3", "not an override: a b=3", WRITTEN),
    ("+dp=2", "dp exists already, write it without +: +dp=2", "dp=2"),
    ("+model=tiny", "model exists already, write it without +: +model=tiny", "model=tiny"),
    ("dp=1,2", "dp takes one value, or several with -m: dp=1,2", "-m dp=1,2"),
    (
        "bench.concurrency=1,4",
        "bench.concurrency must be a list of whole numbers, such as [1,4]: 1,4",
        "'bench.concurrency=[1,4]'",
    ),
    (
        "compare.runs=a,b",
        "compare.runs must be a list such as [a,b]: a,b",
        "'compare.runs=[a,b]'",
    ),
    (
        "bench.concurrency=[1],[4]",
        "bench.concurrency takes one value, or several with -m: bench.concurrency=[1],[4]",
        "-m 'bench.concurrency=[1],[4]'",
    ),
    ("~nope", "nothing can be taken away with ~: ~nope", OPTIONS),
    ("~backend", "backend has no value", "backend=mp"),
    ("name=${foo}", "Interpolation key 'foo' not found: name=${foo}", "name=flotilla"),
    ("hydra.foo=1", "Key 'foo' not in 'HydraConf': hydra.foo=1", OPTIONS),
    # Flags.
    (
        "--dp=2",
        "there is no flag --dp: --dp=2",
        "options are overrides, without dashes: dp=2",
    ),
    ("--nope", "there is no flag --nope: --nope", WRITTEN),
    (
        "--config-name=nope",
        "Cannot find primary config 'nope'. Check that it's in your config search path.",
        OPTIONS,
    ),
    (
        "--resolve",
        "The --resolve flag can only be used in conjunction with --cfg or --help",
        "python -m launcher --hydra-help lists the flags",
    ),
]


@pytest.mark.parametrize(("argument", "message", "hint"), MISTAKES)
def test_a_mistake(flotilla, argument: str, message: str, hint: str):
    assert flotilla(argument) == (2, "", f"{message}\nhint: {hint}\n")


@pytest.mark.parametrize(
    "hint",
    sorted({row[2] for row in MISTAKES if all("=" in each for each in shlex.split(row[2]))}),
)
def test_hints_work(hint: str):
    more = {
        "cluster=file": ["action=plan"],
        "cluster=emulated": ["action=plan", "backend=ray"],
        "backend=ray": ["action=plan"],
        "topology=split": ["dp=2", "action=plan"],
    }
    check(composed(*shlex.split(hint), *more.get(hint.partition(" ")[0], ())))


def test_a_topology_brings_the_options_of_its_backend(flotilla):
    code, _, err = flotilla("topology=split", "backend.addr=10.0.0.1:6379")
    assert (code, err.splitlines()[-1]) == (2, "hint: backend.address=10.0.0.1:6379")


@pytest.mark.parametrize("directory", ["weights", "owner/name"])
def test_a_directory_that_is_there_is_no_name(flotilla, tmp_path, monkeypatch, directory: str):
    (tmp_path / directory).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    code, _, err = flotilla(f"model={directory}")
    assert (code, err.splitlines()[-1]) == (2, f"hint: model=path model.path={directory}")


def test_all_mistakes_are_named_at_once(flotilla):
    code, out, err = flotilla("dpp=2", "topology=x", "dtyp=bf16", "drain_s=long")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "there is no option dpp: dpp=2",
        f"{NO_TOPOLOGY}: x",
        "there is no option dtyp: dtyp=bf16",
        "drain_s must be a number: long",
        "hint: dp=2 topology=head_only engine.dtype=bfloat16 drain_s=30.0",
    ]


def test_a_mistake_beside_a_right_choice_of_an_optional_group(flotilla):
    code, out, err = flotilla("+ci=mp_scale_out", "dp=x")
    assert (code, out, err) == (2, "", "dp must be a whole number: x\nhint: dp=1\n")


def test_each_value_of_a_sweep_is_looked_at(flotilla):
    code, _, err = flotilla("-m", "modelx=tiny,dummy", "dp=1,two")
    assert code == 2
    assert err.splitlines() == [
        "there is no option modelx: modelx=tiny,dummy",
        "dp must be a whole number: two",
        "hint: model=tiny,dummy dp=1",
    ]


@pytest.mark.parametrize(
    ("typed", "works"),
    [
        ("bench.concurrenci=1,2", "'bench.concurrency=[1,2]'"),
        ("bench.concurrenci=[1,2],[4]", "'bench.concurrency=[1,2],[4]'"),
        ("ddp=1,2", "dp=1,2"),
        ("ddp=1,two", "dp=1"),
        ("ddp=range(1,3)", "'dp=range(1,3)'"),
        ("modelx=tiny,dummy", "model=tiny,dummy"),
        ("max_num_seq=shuffle(3,4)", "'profile.max_num_seqs=shuffle(3,4)'"),
    ],
)
def test_a_misspelt_key_of_a_sweep_is_mended_with_all_its_values(flotilla, typed, works):
    code, _, err = flotilla("-m", typed)
    key = typed.partition("=")[0]
    assert (code, err) == (2, f"there is no option {key}: {typed}\nhint: {works}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("+ci=glob(*)", "dp=x"), "dp must be a whole number: x\nhint: dp=1\n"),
        (
            ("dp=glob(*)", "tp=x"),
            "dp must be a whole number: glob(*)\ntp must be a whole number: x\nhint: dp=1 tp=1\n",
        ),
        (("+ci=glob(no*)",), "no choice fits, nothing was run: +ci=glob(no*)\n"),
    ],
)
def test_a_mistake_in_a_sweep_over_what_fits(flotilla, arguments: tuple[str, ...], message: str):
    assert flotilla("-m", *arguments) == (2, "", message)


def test_a_mistake_is_named_whatever_else_is_shown(flotilla):
    assert flotilla("--cfg", "job", "dpp=2")[0] == 2
    assert flotilla("--help", "dpp=2")[0] == 2


def test_a_flag_with_its_value_apart(flotilla):
    assert flotilla("--max-num-seqs", "3") == (
        2,
        "",
        "there is no flag --max-num-seqs: --max-num-seqs 3\n"
        "hint: options are overrides, without dashes: profile.max_num_seqs=3\n",
    )
