"""Files that appear whole or not at all, whoever else writes and however a run ends."""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_dfmpc.errors import RecipeError
from onnx_dfmpc.model import writing
from onnx_dfmpc.model.files import external_files, load, save
from onnx_dfmpc.model.writing import DRAFT, draft, publish, require_writable, write_whole


def network(seed: int = 0) -> onnx.ModelProto:
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] y) { [conv] y = Conv<pads = [1, 1, 1, 1]>(x, w) }""")
    values = np.random.default_rng(seed).standard_normal((16, 16, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def data_of(path: Path) -> Path:
    (found,) = external_files(path)
    return found


def test_the_data_of_another_model_is_left_alone(tmp_path):
    for name in ("net.onnx.data", "net.0123456789abcdef.onnx_data", "other.0123456789abcdef.onnx.data"):
        (tmp_path / name).write_bytes(b"precious")
    before = contents(tmp_path)
    save(network(), tmp_path / "net.onnx", external_data=True)
    assert contents(tmp_path).items() > before.items()


def test_a_data_file_with_the_name_and_another_content(tmp_path):
    save(network(), tmp_path / "net.onnx", external_data=True)
    data = data_of(tmp_path / "net.onnx")
    whole = data.read_bytes()
    (tmp_path / "net.onnx").unlink()
    data.write_bytes(b"precious")
    with pytest.raises(RecipeError, match=r"\.data: exists already"):
        save(network(), tmp_path / "net.onnx", external_data=True)
    assert contents(tmp_path) == {data.name: b"precious"}
    data.write_bytes(whole)
    save(network(), tmp_path / "net.onnx", external_data=True)
    assert load(tmp_path / "net.onnx").proto.graph.initializer == network().graph.initializer


def test_the_data_of_a_replaced_model_goes_unless_a_copy_needs_it(tmp_path):
    path = tmp_path / "net.onnx"
    save(network(0), path, external_data=True)
    first = data_of(path)
    save(network(1), path, external_data=True, overwrite=True)
    second = data_of(path)
    assert set(contents(tmp_path)) == {"net.onnx", second.name}
    assert first != second
    os.rename(path, tmp_path / "kept.onnx")
    save(network(2), path, external_data=True, overwrite=True)
    assert load(tmp_path / "kept.onnx").proto.graph.initializer == network(1).graph.initializer
    save(network(3), path, overwrite=True)
    assert set(contents(tmp_path)) == {"net.onnx", "kept.onnx", second.name}


def test_save_over_its_own_source(tmp_path):
    path = tmp_path / "net.onnx"
    save(network(), path, external_data=True)
    loaded = load(path)
    save(loaded.proto, path, external_data=True, overwrite=True)
    assert load(path).proto == loaded.proto


def test_input_files_are_never_written_over(tmp_path, monkeypatch):
    source, data = tmp_path / "in.onnx", tmp_path / "in.bin"
    onnx.save(network(), source, save_as_external_data=True, location=data.name, size_threshold=0)
    loaded = load(source)
    assert loaded.files == (source, data)
    (tmp_path / "link.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    os.link(data, tmp_path / "hard.bin")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "no").mkdir()
    for target in (
        "in.onnx", source, tmp_path / "no" / ".." / "in.onnx", "link.onnx", "hard.onnx", "in.bin", "hard.bin"
    ):  # fmt: skip
        for external_data in (False, True):
            with pytest.raises(RecipeError, match="belongs to the input") as caught:
                save(network(1), target, external_data=external_data, overwrite=True, protected=loaded.files)
            assert caught.value.hint
    (tmp_path / "no").rmdir()
    assert contents(tmp_path) == before
    save(network(), "out.onnx", protected=loaded.files)


def test_the_data_of_the_input_is_not_obsolete(tmp_path):
    """The input has the data of a model that is replaced; its own file has a suffix that nobody looks at."""
    save(network(), tmp_path / "net.onnx", external_data=True)
    os.rename(tmp_path / "net.onnx", tmp_path / "input.data")
    loaded = load(tmp_path / "input.data")
    save(network(1), tmp_path / "net.onnx", external_data=True, protected=loaded.files)
    assert load(tmp_path / "input.data").proto.graph.initializer == network().graph.initializer


def test_a_file_that_was_removed_is_still_protected(tmp_path):
    with pytest.raises(RecipeError, match="belongs to the input"):
        require_writable(tmp_path / "." / "in.onnx", protected=[tmp_path / "in.onnx"])


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    for target in (tmp_path / "pipe.onnx", Path(os.devnull)):
        with pytest.raises(RecipeError, match="not a regular file") as caught:
            save(network(), target, overwrite=True)
        assert caught.value.hint
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nothing")
    save(network(), tmp_path / "dangling.onnx", overwrite=True)
    assert not (tmp_path / "dangling.onnx").is_symlink()


def test_write_whole(tmp_path):
    target = tmp_path / "a.txt"
    write_whole(target, b"one")
    write_whole(target, (part for part in (b"t", b"wo")))
    assert target.read_bytes() == b"two"
    with pytest.raises(RecipeError, match="exists already"):
        write_whole(target, b"three", overwrite=False)

    def broken():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(RecipeError, match=r"a\.txt: cannot write: No space left"):
        write_whole(target, broken())
    assert contents(tmp_path) == {"a.txt": b"two"}


@pytest.mark.parametrize("length", [250, 255])
def test_names_may_be_as_long_as_the_system_allows(tmp_path, length):
    target = tmp_path / ("x" * (length - 5) + ".onnx")
    save(network(), target)
    assert load(target).proto == network()
    with pytest.raises(RecipeError, match="name too long"):
        require_writable(target, external_data=True, overwrite=True)


@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(RecipeError, match="cannot write"):
        save(network(), tmp_path / name)


def test_save_into_missing_directory_or_onto_a_directory(tmp_path):
    with pytest.raises(RecipeError, match="there is no directory"):
        save(network(), tmp_path / "no" / "net.onnx")
    with pytest.raises(RecipeError, match="a directory"):
        save(network(), tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("external_data", "step", "fails_at"),
    [(False, "fsync", 1), (False, "replace", 1), (True, "fsync", 1), (True, "fsync", 2)]
    + [(True, "replace", n) for n in (1, 2)],
)
def test_failure_in_the_middle_leaves_the_old_files(tmp_path, monkeypatch, external_data, step, fails_at):
    path = tmp_path / "net.onnx"
    save(network(), path, external_data=external_data)
    before = contents(tmp_path)
    calls, real = [], getattr(os, step)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(writing.os, step, fail)
    with pytest.raises(RecipeError, match="No space left"):
        save(network(1), path, external_data=external_data, overwrite=True)
    assert len(calls) == fails_at
    assert contents(tmp_path) == before


def test_every_moment_of_a_replacement_has_a_model_with_its_own_data(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    save(network(0), path, external_data=True)
    seen = []

    def look(real):
        def looking(*arguments, **keywords):
            result = real(*arguments, **keywords)
            weight = onnx.load(path).graph.initializer[0].raw_data
            seen.append([weight == network(seed).graph.initializer[0].raw_data for seed in (0, 1)])
            return result

        return looking

    for step in ("replace", "link", "rename", "fsync"):
        monkeypatch.setattr(writing.os, step, look(getattr(os, step)))
    monkeypatch.setattr(Path, "unlink", look(Path.unlink))
    save(network(1), path, external_data=True, overwrite=True)
    assert all(any(models) for models in seen)
    assert seen[0] == [True, False]
    assert seen[-1] == [False, True]


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(network(), tmp_path / "net.onnx", external_data=True)
    assert os.listdir(tmp_path) == []


def test_several_files_appear_together_or_not_at_all(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with draft(one, b"1") as first, draft(two, b"2") as second:
        assert not one.exists()
        two.write_bytes(b"somebody else's")
        with pytest.raises(RecipeError, match="two: exists already"):
            publish([first, second])
    assert contents(tmp_path) == {"two": b"somebody else's"}


def test_drafts_of_killed_runs_are_removed_and_those_of_others_are_not(tmp_path):
    abandoned = tmp_path / DRAFT.format("0" * 16)
    abandoned.write_bytes(b"half")
    foreign = tmp_path / ".onnx-dfmpc-notes.tmp"
    foreign.write_bytes(b"mine")
    with draft(tmp_path / "one", b"1") as busy:
        assert not abandoned.exists()
        write_whole(tmp_path / "two", b"2")
        publish([busy])
    assert set(contents(tmp_path)) == {"one", "two", foreign.name}


@pytest.mark.parametrize("links", [True, False])
def test_of_two_runs_without_overwrite_one_wins(tmp_path, monkeypatch, links):
    if not links:  # as on FAT

        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(writing.os, "link", refuse)
    runs, results = 8, []
    ready = threading.Barrier(runs)

    def write(number):
        with draft(tmp_path / "net.onnx", str(number).encode()) as whole:
            ready.wait()
            with suppress(RecipeError):
                publish([whole])
                results.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path) == {"net.onnx": str(*results).encode()}


def test_two_runs_with_overwrite_leave_one_whole_pair(tmp_path):
    path = tmp_path / "net.onnx"
    threads = [
        threading.Thread(
            target=save, args=(network(seed % 3), path), kwargs={"external_data": True, "overwrite": True}
        )
        for seed in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    weight = load(path).proto.graph.initializer[0].raw_data
    assert weight in [network(seed).graph.initializer[0].raw_data for seed in range(3)]
    assert set(contents(tmp_path)) == {"net.onnx", data_of(path).name}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("interrupted", [1, 2])
@pytest.mark.parametrize("after", [True, False])
def test_an_interrupt_around_a_rename(tmp_path, monkeypatch, there, interrupted, after):
    """Just before the data or the model takes its place, or just after: all of the old, or all of the new."""
    path = tmp_path / "net.onnx"
    if there:
        save(network(0), path, external_data=True)
    before, calls = contents(tmp_path), []
    step = "replace" if there else "link"
    real = getattr(os, step)

    def interrupt(*arguments):
        calls.append(arguments)
        if after:
            real(*arguments)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        if not after:
            real(*arguments)

    monkeypatch.setattr(writing.os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(network(1), path, external_data=True, overwrite=there)
    now = contents(tmp_path)
    if there and after and interrupted == 2:
        assert load(path).proto.graph.initializer == network(1).graph.initializer
        assert set(now) == {path.name, data_of(path).name}
    else:
        assert now == before
