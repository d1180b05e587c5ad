"""A state in a file is the state, of the model that made it and of no other."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
import torch
from helpers import assert_same_prediction, assert_same_record, random_points, small, small_cmanp
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from npbench.blocks import PointFilter
from npbench.errors import InputError
from npbench.likelihoods import Likelihood
from npbench.models import CMANP, CMANPState
from npbench.models.contracts import state_files
from npbench.models.contracts.process import records_arguments
from npbench.models.located import LocatedState

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def state_of(model: CMANP, points: int = 9, batch: int = 2) -> CMANPState:
    x, y = random_points(batch, points, model.dim_x, model.dim_y, model.latents.dtype)
    return model.condition(x, y)


MODELS: dict[str, Callable[[], CMANP]] = {
    "CMANP": small_cmanp,
    "CMANP in float64": lambda: small_cmanp(dtype=torch.float64),
    "CMANPAND": lambda: small("CMANPAND"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("with_latents", [True, False])
@pytest.mark.parametrize("with_model", [True, False])
def test_a_state_comes_back_as_it_was(
    make: Callable[[], CMANP], with_latents: bool, with_model: bool, tmp_path: Path
) -> None:
    model = make()
    state = state_of(model)
    if not with_latents:
        state = state.merge(state_of(model))
    checked = model if with_model else None
    state.save(tmp_path / "state", model)
    loaded = CMANPState.load(str(tmp_path / "state"), checked)
    assert (loaded.latents is None) == (not with_latents)
    assert_same_record(loaded, state)
    x, y = random_points(2, 5, model.dim_x, model.dim_y, model.latents.dtype)
    assert_same_prediction(model.query(loaded, x), model.query(state, x), 0.0)
    assert_same_record(model.update(loaded, x, y), model.update(state, x, y))


def test_of_no_points_too(tmp_path: Path) -> None:
    model = small_cmanp()
    state = state_of(model, points=0)
    state.save(tmp_path / "state", model)
    assert_same_record(CMANPState.load(tmp_path / "state", model), state)


def test_what_training_has_made_is_saved_without_its_graph(tmp_path: Path) -> None:
    model = small_cmanp()
    with torch.enable_grad():
        state = state_of(model)
    state.save(tmp_path / "state", model)
    loaded = CMANPState.load(tmp_path / "state", model)
    assert_same_record(loaded, state)
    assert not loaded.latents.requires_grad


def test_it_can_be_saved_where_it_was_loaded_from(tmp_path: Path) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state = state_of(model)
    state.save(path, model)
    loaded = CMANPState.load(path, model)
    state_of(model).save(path, model)
    assert_same_record(loaded, state)
    loaded.save(path, model)
    assert_same_record(CMANPState.load(path, model), state)


def test_a_file_of_the_paper_s_model_is_a_few_hundred_kilobytes_whatever_the_context(
    tmp_path: Path,
) -> None:
    model = CMANP(dim_x=2, dim_y=1).eval()
    for points in (0, 1, 1000):
        state_of(model, points, batch=1).save(tmp_path / f"{points}", model)
    (size,) = {path.stat().st_size for path in tmp_path.iterdir()}
    assert 200_000 < size < 500_000


def test_its_bytes_are_a_file(tmp_path: Path) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state = state_of(model)
    data = state.to_bytes(model, day="2020-01-01")
    assert_same_record(CMANPState.from_bytes(data, model), state)
    path.write_bytes(data)
    assert_same_record(CMANPState.load(path, model), state)
    assert state_files.read_notes(path)["day"] == "2020-01-01"


def test_bytes_that_are_damaged_or_of_another_model_are_refused() -> None:
    model = small_cmanp()
    data = state_of(model).to_bytes(model)
    with pytest.raises(InputError, match="the state is a state of another model"):
        CMANPState.from_bytes(data, small_cmanp())
    with pytest.raises(InputError, match="the state is damaged"):
        CMANPState.from_bytes(data[:-1] + bytes([data[-1] ^ 1]), model)
    for wrong in (b"", b"npbench", data[:-8]):
        with pytest.raises(InputError, match="the state is no saved state"):
            CMANPState.from_bytes(wrong, model)


def test_a_new_folder_is_made_and_notes_are_kept(tmp_path: Path) -> None:
    path, model = tmp_path / "new" / "folder" / "state", small_cmanp()
    state_of(model).save(path, model, x="lat,lon", day="2020-01-01", format="mine")
    assert list(path.parent.iterdir()) == [path]
    notes = state_files.read_notes(path)
    assert notes | {"x": "lat,lon", "day": "2020-01-01"} == notes
    assert notes["fingerprint"] == state_files.fingerprint(model)


def changed(model: CMANP, change: Callable[[CMANP], object]) -> CMANP:
    model = copy.deepcopy(model)
    change(model)
    return model


def test_a_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = small_cmanp()
    state_of(model).save(tmp_path / "state", model)
    message = "state is a state of another model, or of other weights: load the checkpoint that"
    for other in (
        small_cmanp(),
        changed(model, lambda m: m.head.mlp[-1].bias[0].add_(1e-6)),
        changed(model, CMANP.double),
        changed(model, CMANP.bfloat16),
        small("CMANPAND"),
    ):
        with pytest.raises(ValueError, match=message):
            CMANPState.load(tmp_path / "state", other)
    assert CMANPState.load(tmp_path / "state", copy.deepcopy(model)).batch_size == 2


def test_the_fingerprint_knows_every_parameter() -> None:
    model = small_cmanp(qk_norm=True)
    fingerprints = {state_files.fingerprint(model)}
    for parameter in model.parameters():
        parameter.view(-1)[-1].add_(1.0)
        fingerprints.add(state_files.fingerprint(model))
    assert len(fingerprints) == 1 + len(list(model.parameters()))


def test_the_fingerprint_knows_two_weights_that_changed_places() -> None:
    model, other = small_cmanp(), small_cmanp()
    names = ["blocks.0.latents", "blocks.1.latents"]
    weights = model.state_dict()
    first, second = (weights[name] for name in names)
    other.load_state_dict(weights | {names[0]: second, names[1]: first})
    assert state_files.fingerprint(model) != state_files.fingerprint(other)
    other.load_state_dict(weights)
    assert state_files.fingerprint(model) == state_files.fingerprint(other)


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"context_chunk_size": 7}, True),
        ({"dropout": 0.3}, True),
        ({"num_heads": 4}, False),
        ({"bound_std": True}, False),
        ({"norm_residual": False}, False),
    ],
)
def test_the_fingerprint_knows_arguments_that_leave_no_trace_in_the_weights(
    arguments: dict, same: bool, tmp_path: Path
) -> None:
    """And is the same for those that change nothing in the predictions."""
    model, other = small_cmanp(), small_cmanp(**arguments)
    other.load_state_dict(model.state_dict())
    assert (state_files.fingerprint(model) == state_files.fingerprint(other)) == same
    state_of(model).save(tmp_path / "state", model)
    if same:
        assert CMANPState.load(tmp_path / "state", other).batch_size == 2
    else:
        with pytest.raises(ValueError, match="of another model, or of other weights"):
            CMANPState.load(tmp_path / "state", other)


def test_the_fingerprint_knows_the_class() -> None:
    class Other(CMANP):
        """The same arguments and weights, and other predictions perhaps."""

    model = small_cmanp()
    other = Other(**model.hparams)
    other.load_state_dict(model.state_dict())
    assert state_files.fingerprint(model) != state_files.fingerprint(other)


class LaterCMANP(CMANP):
    """As a later release may extend CMANP: by arguments whose defaults change nothing."""

    @records_arguments
    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        new: float | None = None,
        dim_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 6,
        dim_feedforward: int = 128,
        num_latents: int = 128,
        num_block_latents: int = 128,
        embed_depth: int = 4,
        dropout: float = 0.0,
        bound_std: bool = False,
        qk_norm: bool = False,
        norm_residual: bool = True,
        context_chunk_size: int | None = None,
        likelihood: Likelihood = "gaussian",
        with_mass: bool = False,
        filter: PointFilter | None = None,
        sizes: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(
            dim_x, dim_y, dim_model, num_heads, num_layers, dim_feedforward, num_latents,
            num_block_latents, embed_depth, dropout, bound_std, qk_norm, norm_residual,
            context_chunk_size, likelihood, with_mass, filter,
        )  # fmt: skip


LaterCMANP.__name__ = "CMANP"


def later(model: CMANP, **arguments: object) -> CMANP:
    """The same model in a later release, with other arguments perhaps."""
    other = LaterCMANP(**(model.hparams | arguments)).eval()
    other.load_state_dict(model.state_dict())
    return other


def as_version_1(path: Path, model: CMANP) -> None:
    """Make a state file what release 0.1.0 would have written."""
    # Those without effect, and those that came later.
    left_out = {"context_chunk_size", "dropout", "likelihood", "with_mass", "filter"}
    arguments = {k: v for k, v in model.hparams.items() if k not in left_out}
    digest = hashlib.sha256(f"{type(model).__name__} {json.dumps(arguments)}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    facts = {"format": "npbench-state", "version": "1", "fingerprint": digest.hexdigest()}
    save_file(state_files.read(path), path, facts)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({}, True),
        ({"sizes": [0, 1]}, True),  # as a configuration gives them
        ({"dropout": 0.5}, True),
        ({"new": 0.0}, False),
        ({"sizes": (0.0, 2.0)}, False),
        ({"bound_std": True}, False),
    ],
    ids=str,
)
def test_a_new_argument_at_its_default_refuses_no_state(
    version: str, arguments: dict, same: bool, tmp_path: Path
) -> None:
    model, path = small_cmanp(qk_norm=True), tmp_path / "state"
    state = state_of(model)
    state.save(path, model)
    if version == "1":
        as_version_1(path, model)
    assert state_files.read_notes(path)["version"] == version
    other = later(model, **arguments)
    if same:
        assert_same_record(CMANPState.load(path, other), state)
    else:
        with pytest.raises(ValueError, match="of another model, or of other weights"):
            CMANPState.load(path, other)


class Subclass(CMANP):
    """A class outside npbench, with the arguments of its base."""


class SubclassOfItsOwn(CMANP):
    """A class outside npbench, with arguments of its own."""

    @records_arguments
    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__(1, 1, width, 2, 1, width, 4, 4, dropout=dropout)


@pytest.mark.parametrize(
    "make",
    [
        *MODELS.values(),
        lambda: Subclass(**small_cmanp().hparams).eval(),
        lambda: SubclassOfItsOwn().eval(),
    ],
    ids=[*MODELS, "a subclass", "a subclass with other arguments"],
)
def test_a_state_of_version_1_is_of_its_model_alone(
    make: Callable[[], CMANP], tmp_path: Path
) -> None:
    model, path = make(), tmp_path / "state"
    state = state_of(model)
    state.save(path, model)
    as_version_1(path, model)
    loaded = CMANPState.load(path, model)
    assert_same_record(loaded, state)
    with pytest.raises(ValueError, match="of another model, or of other weights"):
        CMANPState.load(path, make())
    loaded.save(path, model)
    assert state_files.read_notes(path)["version"] == "2"
    assert_same_record(CMANPState.load(path, model), state)


def test_the_fingerprint_does_not_depend_on_mode_or_gradients() -> None:
    model = small_cmanp()
    expected = state_files.fingerprint(model)
    model.train().requires_grad_(False)
    assert state_files.fingerprint(model) == expected


def test_a_state_that_was_saved_without_its_model_is_loaded_without_one(tmp_path: Path) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state = state_of(model)
    state.save(path)
    assert_same_record(CMANPState.load(path), state)
    with pytest.raises(ValueError, match=r"was saved without its model, .* save it by state\.save"):
        CMANPState.load(path, model)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("a state\n" * 100)


def checkpoint(path: Path) -> None:
    torch.save(small_cmanp().state_dict(), path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def tensors(path: Path, **facts: str) -> None:
    save_file({"attention.lse": torch.ones(2)}, path, facts or None)


def tensors_of_others(path: Path) -> None:
    tensors(path, format="pt")


def of_the_future(path: Path) -> None:
    tensors(path, format="npbench-state", version="3")


def of_no_version(path: Path) -> None:
    tensors(path, format="npbench-state")


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change tensors or notes of a state file, and leave its checksum as it was."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = file.metadata()
    change(tensors, notes)
    save_file(tensors, path, notes)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, notes: tensors["latents"].view(-1)[3:4].mul_(1.0000002),
        lambda tensors, notes: tensors["attention.out"].view(-1)[:1].neg_(),
        lambda tensors, notes: tensors.pop("latents"),
        lambda tensors, notes: notes.update(x="lon,lat"),
    ],
    ids=["a digit", "a sign", "a tensor", "a note"],
)
def test_a_state_that_is_not_what_was_saved_is_refused(tmp_path: Path, change: Callable) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state_of(model).save(path, model, x="lat,lon")
    CMANPState.load(path, model)
    rewrite(path, change)
    with pytest.raises(InputError, match="is damaged: it does not have the checksum"):
        CMANPState.load(path, model)


@hypothesis.given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_a_flipped_bit_is_found_or_changes_nothing(share: float, bit: int) -> None:
    model = small_cmanp()
    state = state_of(model)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        state.save(path, model)
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        path.write_bytes(content)
        try:
            loaded = CMANPState.load(path, model)
        except InputError:
            return
        assert_same_record(loaded, state)


def malformed(**changed: torch.Tensor) -> Callable[[dict, dict], None]:
    def change(tensors: dict, notes: dict) -> None:
        del notes["checksum"]  # as a release without checksums, or another program, writes it
        tensors.update({name.replace("_", "."): value for name, value in changed.items()})

    return change


@pytest.mark.parametrize(
    "change",
    [
        malformed(attention_lse=torch.zeros(2)),
        malformed(attention_lse=torch.zeros(1, 2, 3, 4)),
        malformed(attention_out=torch.zeros(())),
        malformed(latents=torch.zeros(3, 1, 6, 16)),
        malformed(latents=torch.zeros(0)),
        malformed(latents=torch.zeros(2, 1, 6, 16, dtype=torch.int64)),
    ],
)
def test_a_malformed_state_is_refused_in_one_sentence(tmp_path: Path, change: Callable) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state_of(model).save(path, model)
    rewrite(path, change)
    with pytest.raises(InputError, match=r"state holds "):
        CMANPState.load(path, model)


@pytest.mark.parametrize("places", ["[" * 5000, "{}", "[1]", "text", '{"low": 1}'])
def test_notes_that_make_no_sense_are_refused_in_one_sentence(tmp_path: Path, places: str) -> None:
    model, path = small("LocatedCMANP"), tmp_path / "state"
    x, y = random_points(1, 5, model.dim_x, model.dim_y, torch.float64)
    model.condition(x, y).save(path, model)
    rewrite(path, lambda tensors, notes: notes.update(places=places) or notes.pop("checksum"))
    with pytest.raises(InputError, match=r"state holds (no|the) state of"):
        LocatedState.load(path, model)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (loop, "there is no state file "),
        (cut, "file is no state file: "),
        (cut_in_the_header, "file is no state file: "),
        (nothing, "file is no state file: "),
        (text, "file is no state file: "),
        (checkpoint, "file is no state file: "),
        (folder, "there is no state file "),
        (gone, "there is no state file "),
        (tensors, "file holds tensors, but no state that npbench has saved"),
        (tensors_of_others, "file holds tensors, but no state that npbench has saved"),
        (of_the_future, "file is a state file of version 3; this npbench reads 1 and 2"),
        (of_no_version, "file is a state file of version None; this npbench reads 1 and 2"),
    ],
)
def test_what_is_no_state_is_refused(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    model, path = small_cmanp(), tmp_path / "file"
    state_of(model).save(path, model)
    spoil(path)
    for given in (None, model):
        with pytest.raises(ValueError, match=message):
            CMANPState.load(path, given)
    with pytest.raises(ValueError, match=message):
        state_files.read_notes(path)


def half_written(path: Path, data: bytes) -> int:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def interrupted(path: Path, data: bytes) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [half_written, interrupted])
@pytest.mark.parametrize("where", ["pathlib.Path.write_bytes", "os.replace"])
@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_the_file_as_it_was_and_no_litter(
    failure: Callable, where: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = small_cmanp(), tmp_path / "state"
    state = state_of(model)
    if before:
        state.save(path, model)
    fails = failure if "write" in where else lambda source, target: failure(source, b"half")
    with monkeypatch.context() as patched:
        patched.setattr(where, fails)
        with pytest.raises((OSError, KeyboardInterrupt)):
            state_of(model).save(path, model)
    assert list(tmp_path.iterdir()) == ([path] if before else [])
    if before:
        assert_same_record(CMANPState.load(path, model), state)


def test_a_file_that_is_there_is_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system is asked to do meanwhile."""
    model, path = small_cmanp(), tmp_path / "state"
    first, second = state_of(model), state_of(model)
    first.save(path, model)
    write, seen = Path.write_bytes, []

    def watching(self: Path, data: bytes) -> int:
        count = write(self, data)
        seen.append(CMANPState.load(path, model))
        return count

    monkeypatch.setattr(Path, "write_bytes", watching)
    second.save(path, model)
    (meanwhile,) = seen
    assert_same_record(meanwhile, first)
    assert_same_record(CMANPState.load(path, model), second)


def test_tensors_of_any_layout_are_saved(tmp_path: Path) -> None:
    """Views of larger ones, transposed ones."""
    wide: Tensor = torch.arange(24.0).reshape(2, 3, 4)
    state_files.write(tmp_path / "state", {"a": wide.mT, "b": wide[:, 1]}, None, {})
    read = state_files.read(tmp_path / "state")
    assert torch.equal(read["a"], wide.mT)
    assert torch.equal(read["b"], wide[:, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_state_is_loaded_onto_the_model_s_device(tmp_path: Path) -> None:
    model = small_cmanp()
    state = state_of(model)
    state.save(tmp_path / "state", model)
    loaded = CMANPState.load(tmp_path / "state", model.cuda())
    assert {z.device.type for z in loaded.tensors()} == {"cuda"}
    assert_same_record(loaded.to("cpu"), state)
    loaded.save(tmp_path / "state", model)
    assert_same_record(CMANPState.load(tmp_path / "state"), state)
