"""How many rows are computed together: as somebody says, or as many as are fastest here."""

import pytest

from helpers.__main__ import main
from helpers.measure import batch_size
from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.answerers import answerer_for
from helpers.serve.batch import run_job
from helpers.serve.rows import read_rows
from tests.jobs import asked, command, draw_pictures, written

NUMBER = 6  # of pictures
OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(internvl2_folder):
    return internvl2_folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return VisionLanguagePipeline(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("pictures"), NUMBER)


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 16])
def test_so_many_rows_are_computed_together(folder, tmp_path, number):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f'{{"question": "Who are you, {n}?"}}\n' for n in range(17)))
    local = answerer_for(OPTIONS, print, folder=folder, batch_size=number)
    numbers, compute = [], local.pipeline.batch.compute
    local.pipeline.worker._compute = lambda rows: numbers.append(len(rows)) or compute(rows)
    rows = read_rows(source, ())
    run_job(local, rows, tmp_path / "a.jsonl", OPTIONS, report=lambda line: None)
    assert len(written(tmp_path / "a.jsonl")) == 17 and max(numbers) == number


@pytest.mark.slow
def test_the_fastest_number_is_kept_for_a_file_that_is_begun(folder, pictures, tmp_path, capsys):
    output = tmp_path / "new" / "a.jsonl"
    words = command(folder, pictures, output, *asked("What?"), "--batch-size", "auto")
    words += ["--max-new-tokens", "3"]
    for is_new in (True, False):  # begun, then resumed
        assert main(words) == 3
        assert (" rows together: " in capsys.readouterr().err) is is_new
    assert int((output.parent / ".a.jsonl.batch-size").read_text()) in batch_size.SIZES
    output.unlink()
    (output.parent / ".a.jsonl.batch-size").write_text("many")
    assert main(words) == 3
    assert " rows together: " in capsys.readouterr().err
    assert int((output.parent / ".a.jsonl.batch-size").read_text()) in batch_size.SIZES


@pytest.mark.parametrize(
    ("seconds", "free", "expected"),
    [
        ({4: 1.0, 8: 1.2, 16: 1.4, 32: 1.6}, 10**12, 32),
        ({4: 1.0, 8: 1.2, 16: 2.4}, 10**12, 8),
        ({4: 1.0, 8: 2.0}, 10**12, 4),
        ({4: 1.0, 8: 1.2}, 10, 8),  # 8 caches have taken 4 of 10, and 16 might take 12
    ],
)
def test_what_is_fastest(pipeline, monkeypatch, seconds, free, expected):
    sizes = []

    class Batch:
        def __init__(self, language_model) -> None:
            pass

        def compute(self, rows) -> None:
            sizes.append(len(rows))

    def timed(step):
        step()
        return seconds[sizes[-1]], None

    def memory():
        caches = {0: 0, 4: 2, 8: 4, 16: 8, 32: 16}[sizes[-1] if sizes else 0]
        return free - caches

    monkeypatch.setattr(batch_size, "Batch", Batch)
    monkeypatch.setattr(batch_size, "timed", timed)
    monkeypatch.setattr(batch_size, "available_memory", memory)
    assert batch_size.fastest_batch_size(pipeline) == expected
    assert sorted(set(sizes)) == sorted(seconds)


@pytest.mark.parametrize("number", ["0", "-1", "many", "2.5"])
def test_what_is_no_number_is_told(folder, pictures, tmp_path, capsys, number):
    with pytest.raises(SystemExit):
        main(command(folder, pictures, tmp_path / "a", *asked("What?"), f"--batch-size={number}"))
    assert f"'{number}' is no number of rows; give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (("--server", "127.0.0.1:1", "--batch-size", "2"), "Leave out --batch-size, which a --ser"),
        (("--ray", "auto", "--batch-size", "auto"), "give --ray a number"),
    ],
)
def test_where_nothing_can_be_measured(folder, pictures, tmp_path, capsys, where, sentence):
    place = None if "--server" in where else folder
    assert main(command(place, pictures, tmp_path / "a", *asked("What?"), *where)) == 1
    assert sentence in capsys.readouterr().err
