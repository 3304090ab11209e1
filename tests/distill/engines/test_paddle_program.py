"""Hostile programs are refused before Paddle reads them."""

import json

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from distill.engines.engine import open_predictor, quiet, run_predictor, save_program
from distill.engines.paddle_engine import open_paddle_engine
from distill.engines.paddle_program import MAX_FILE_BYTES, ProgramInput, check_program
from distill.errors import UserError
from distill.recipe import NormalizationSection

PLAIN = NormalizationSection(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PX = 8


def network():
    layers = (nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(4, 5))
    model = nn.Sequential(*layers)
    model.eval()
    return model


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One network in Paddle's new and in its old format, by suffix."""
    folder = tmp_path_factory.mktemp("programs")
    spec = paddle.static.InputSpec([None, 3, PX, PX], "float32", "images")
    model = network()
    with quiet():
        found = {".json": save_program(model, folder / "new", spec)[0]}
        with paddle.pir_utils.OldIrGuard():
            paddle.jit.save(model, str(folder / "old"), input_spec=[spec])
    return found | {".pdmodel": folder / "old.pdmodel"}


def open_it(path):
    return open_paddle_engine(path, PLAIN, threads=1, size_px=PX, view_px=PX)


@pytest.mark.parametrize("suffix", [".json", ".pdmodel"])
def test_a_network_is_taken_and_its_input_known(programs, suffix):
    assert check_program(programs[suffix]) == [ProgramInput("images", (-1, 3, PX, PX), "float32")]
    images = np.random.default_rng(0).random((4, PX, PX, 3), dtype=np.float32)
    answers = [open_it(programs[each])(images)["logits"] for each in (suffix, ".json")]
    np.testing.assert_allclose(*answers, atol=1e-6)
    assert answers[0].std() > 0


def copied(program, to, change):
    """A copy whose program is changed, its weights beside it."""
    path = to / program.name
    path.write_bytes(change(program.read_bytes()))
    weights = program.with_suffix(".pdiparams")
    (to / weights.name).write_bytes(weights.read_bytes())
    return path


def test_an_operator_that_writes_a_file_is_never_run(programs, tmp_path):
    """`save` in a .pdmodel: Paddle Inference runs it, so that opening a network would overwrite any file."""
    from paddle.base.proto import framework_pb2

    target = tmp_path / "written"

    def attack(content):
        program = framework_pb2.ProgramDesc()
        program.ParseFromString(content)
        block = program.blocks[0]
        save = framework_pb2.OpDesc(type="save")
        given_ = save.inputs.add(parameter="X")
        given_.arguments.append(next(each.name for each in block.vars if each.persistable and ".w" in each.name))
        for name, kind, key, value in (
            ("file_path", framework_pb2.STRING, "s", str(target)),
            ("overwrite", framework_pb2.BOOLEAN, "b", True),
            ("save_as_fp16", framework_pb2.BOOLEAN, "b", False),
            ("op_role", framework_pb2.INT, "i", 0),
            ("op_device", framework_pb2.STRING, "s", ""),
        ):
            save.attrs.add(name=name, type=kind, **{key: value})
        operators = [*block.ops]
        del block.ops[:]
        block.ops.extend([*operators[:2], save, *operators[2:]])
        return program.SerializeToString()

    path = copied(programs[".pdmodel"], tmp_path, attack)
    with pytest.raises(UserError, match="uses the operator 'save', which is none that image networks consist of"):
        open_it(path)
    assert not target.exists()
    with quiet():
        predictor = open_predictor(path, path.with_suffix(".pdiparams"), "float32", 1)
        run_predictor(predictor, np.zeros((1, 3, PX, PX), np.float32))
    assert target.stat().st_size > 0, "the attack is none, and what refuses it cannot be tested with it"


def test_an_operator_that_reads_a_file_is_never_run(programs, tmp_path):
    """`read_file` in a .json: its bytes as the program's answer."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")

    def attack(content):
        document = json.loads(content)
        operators = document["program"]["regions"][0]["blocks"][0]["ops"]
        tensor = {"#": "0.t_dtensor", "D": [{"#": "0.t_ui8"}, [-1], "NCHW", [], 0]}
        read = {
            "#": "1.read_file",
            "A": [
                {"AT": {"#": "0.a_str", "D": str(secret)}, "N": "filename"},
                {"AT": {"#": "1.a_dtype", "D": "uint8"}, "N": "dtype"},
                {"AT": {"#": "1.a_place", "D": [1, 0, ""]}, "N": "place"},
            ],
            "I": [],
            "O": [{"%": 999, "TT": tensor}],
            "OA": [{"AT": {"#": "0.a_array", "D": [{"#": "0.a_bool", "D": True}]}, "N": "stop_gradient"}],
        }
        fetch = next(each for each in operators if each["#"] == "1.fetch")
        fetch["I"] = [{"%": 999}]
        fetch["O"][0]["TT"] = tensor
        operators.insert(-1, read)
        return json.dumps(document).encode()

    path = copied(programs[".json"], tmp_path, attack)
    with pytest.raises(UserError, match="uses the operator 'read_file'"):
        open_it(path)
    with quiet():
        predictor = open_predictor(path, path.with_suffix(".pdiparams"), "float32", 1)
        answer = run_predictor(predictor, np.zeros((1, 3, PX, PX), np.float32))[0]
    assert answer.tobytes() == b"secret"


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("1.relu", "1.py_func", "'py_func'"),
        ("1.relu", "1.tensorrt_engine", "'tensorrt_engine'"),
        ("1.relu", "1.save_combine", "'save_combine'"),
        ("1.relu", "2.if", "'2.if' of another dialect"),
        ("1.relu", "3.relu", "'3.relu' of another dialect"),
        ('"magic":', '"magic": 1, "magic":', "the same key twice"),
        ('"program":', '"programme":', "is not a usable program: 'program'"),
    ],
)
def test_what_is_no_network_is_refused(programs, tmp_path, written, instead, message):
    def change(content):
        assert written.encode() in content
        return content.replace(written.encode(), instead.encode(), 1)

    with pytest.raises(UserError, match="is not a usable program") as caught:
        open_it(copied(programs[".json"], tmp_path, change))
    assert message in str(caught.value)


def test_an_operator_inside_another_is_looked_at(programs, tmp_path):
    def change(content):
        document = json.loads(content)
        operators = document["program"]["regions"][0]["blocks"][0]["ops"]
        operators[-1]["regions"] = [{"blocks": [{"ops": [{"#": "1.print"}]}]}]
        return json.dumps(document).encode()

    with pytest.raises(UserError, match="uses the operator 'print'"):
        open_it(copied(programs[".json"], tmp_path, change))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"program": {"regions": [3]}}'])
@pytest.mark.parametrize("suffix", [".json", ".pdmodel"])
def test_a_file_that_is_no_program_is_refused(programs, tmp_path, content, suffix):
    with pytest.raises(UserError, match=r"is not a usable program|has 0 inputs"):
        open_it(copied(programs[suffix], tmp_path, lambda _: content))


@pytest.mark.parametrize("suffix", [".json", ".pdmodel"])
def test_weights_that_are_not_whole_are_refused(programs, tmp_path, suffix):
    """Paddle itself opens them, and answers with what it finds."""
    path = copied(programs[suffix], tmp_path, lambda content: content)
    weights = path.with_suffix(".pdiparams")
    content = weights.read_bytes()
    for damaged in (
        content[:-1],
        content[:-60],
        content + b"\0",
        content[:20],
        b"\xff" * 40,
        content[:4] + b"\xff" * 40,
    ):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a whole file of weights"):
            open_it(path)
    weights.write_bytes(content)
    assert open_it(path)


def test_a_huge_program_and_a_pipe_are_refused(tmp_path):
    path = tmp_path / "n.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="is larger than"):
        check_program(path)
    with pytest.raises(UserError, match="Cannot read the network"):
        check_program(tmp_path)


@given(st.data())
def test_damaged_programs_raise_nothing_else(programs, tmp_path_factory, data):
    suffix = data.draw(st.sampled_from([".json", ".pdmodel"]))
    content = bytearray(programs[suffix].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        check_program(path)
    except UserError as error:
        assert str(path) in str(error)


def test_common_networks_are_taken(tmp_path):
    """Architectures of paddle.vision and a block of a transformer: none of their operators is forgotten."""

    class Attention(nn.Layer):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2D(3, 16, 8, 8)
            self.position = self.create_parameter([1, 16, 16])
            self.block = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu")
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, 5)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose([0, 2, 1]) + self.position
            return self.head(self.norm(self.block(tokens))[:, 0])

    vision = paddle.vision.models
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32", "images")
    for make in (
        Attention,
        lambda: vision.mobilenet_v3_small(scale=0.35, num_classes=5),
        lambda: vision.shufflenet_v2_x0_25(num_classes=5),
    ):
        model = make()
        model.eval()
        with quiet():
            program, _ = save_program(model, tmp_path / "network", spec)
        assert check_program(program)[0].shape == (-1, 3, 32, 32)
