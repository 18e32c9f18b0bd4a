"""The command line: what each command prints, and its exit code for every kind of bad input."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hybrid_retrieval import Index
from hybrid_retrieval.cli import main
from tests.small_corpus import PASSAGES, write_corpus

CLI = [sys.executable, "-c", "from hybrid_retrieval.cli import main; main()"]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


def one_line(result: Result) -> str:
    """The error: exit 2, a single line on stderr, nothing on stdout."""
    lines = result.err.strip().splitlines()
    assert result.code == 2, result.err
    assert len(lines) == 1, result.err
    assert result.out == ""
    return lines[0]


def test_query_prints_both_stages_as_json(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("query", small_index, "how do vaccines work?", "-k", 3, "--json")
    assert result.code == 0
    assert result.err == ""
    answer = json.loads(result.out)
    assert answer["query"] == "how do vaccines work?"
    assert len(answer["hits"]) == 3
    first = answer["hits"][0]
    assert first["passage_id"] == "vaccine"
    assert {"rank", "score", "retrieval_rank", "retrieval_score", "reranker_score", "text"} <= set(first)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "", "new"),
        ("build", "corpus", ""),
        ("query", "INDEX", "tides", "--config", ""),
        ("evaluate", "INDEX", "corpus", "--run", ""),
        ("info", ""),
    ],
)
def test_an_empty_path_is_not_the_working_directory(  # type: ignore[no-untyped-def]
    run, small_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("a note")
    line = one_line(run(*(str(small_index) if argument == "INDEX" else argument for argument in arguments)))
    assert "the path is empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("kind", [(), ("--kind", "reranker")])
def test_an_export_is_not_exported_again(run, tmp_path: Path, kind: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    assert "an ONNX export already" in one_line(run("export-onnx", "embedded", tmp_path / "out", *kind))
    assert not (tmp_path / "out").exists()


def test_query_says_how_far_a_deadline_let_it_get(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    short = run("query", small_index, "how do vaccines work?", "--deadline-ms", 0.001, "--json")
    answer = json.loads(short.out)
    assert answer["rescored"] == 0 and "no time for stage 2" in answer["notes"][0]
    assert all(hit["reranker_score"] is None for hit in answer["hits"])
    whole = run("query", small_index, "how do vaccines work?", "--deadline-ms", 600_000, "--json")
    assert json.loads(whole.out)["rescored"] == len(PASSAGES)
    assert run("query", small_index, "x", "--no-rerank", "--deadline-ms", 5).code == 2


def test_query_prints_a_table(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("query", small_index, "how do vaccines work?", "-k", 2)
    assert result.code == 0
    assert "vaccine" in result.out
    assert "MaxSim" in result.out


def test_query_of_a_file_prints_a_trec_run(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    queries = tmp_path / "queries.tsv"
    queries.write_text("q1\tgrowing tomatoes\nq2\tcapital of France\n", encoding="utf-8")
    result = run("query", small_index, "--queries", queries, "-k", 2, "--format", "trec", "--no-rerank")
    rows = [line.split() for line in result.out.splitlines()]
    assert [row[0] for row in rows] == ["q1", "q1", "q2", "q2"]
    assert [row[3] for row in rows] == ["1", "2", "1", "2"]
    assert all(row[1] == "Q0" and len(row) == 6 for row in rows)
    assert rows[0][2] == "tomato"
    assert rows[2][2] == "paris"


def test_exact_and_no_rerank_give_the_same_top(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    pruned = run("query", small_index, "tides", "--no-rerank", "--json")
    exact = run("query", small_index, "tides", "--no-rerank", "--exact", "--json")
    assert json.loads(pruned.out)["hits"][0]["passage_id"] == json.loads(exact.out)["hits"][0]["passage_id"] == "moon"


def test_info_has_the_promised_keys(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    facts = json.loads(run("info", small_index, "--json").out)
    assert facts["passages"] == len(PASSAGES)
    assert facts["tokens"] > len(PASSAGES)
    assert facts["bytes"] == sum(file.stat().st_size for file in small_index.rglob("*") if file.is_file())
    assert facts["nbits"] == 2
    assert {"encoder", "version"} <= set(facts)
    assert "passages" in run("info", small_index).out


def test_verify_says_ok_and_finds_a_changed_byte(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    assert json.loads(run("verify", small_index, "--json").out) == {"ok": True, "problems": []}
    copy = tmp_path / "copy"
    shutil.copytree(small_index, copy)
    victim = max((copy / "segments").rglob("*"), key=lambda file: file.stat().st_size if file.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    result = run("verify", copy, "--json")
    assert result.code == 1
    assert any(victim.name in problem for problem in json.loads(result.out)["problems"])


def test_rerank_orders_a_list_without_an_index(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    passages = tmp_path / "passages.txt"
    passages.write_text(
        "The stock market fell by two percent on Tuesday.\n"
        + json.dumps({"id": "b", "text": "Plant tomato seedlings in a sunny place and water them at the root."})
        + "\n",
        encoding="utf-8",
    )
    answer = json.loads(run("rerank", "how to grow tomatoes", "--passages", passages, "--json").out)
    assert [hit["passage_id"] for hit in answer["hits"]] == ["b", "0"]
    assert answer["hits"][0]["reranker_score"] > answer["hits"][1]["reranker_score"]


def test_evaluate_reports_measures_latency_and_a_run(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "how do vaccines work?"}\n', encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\tvaccine\t1\n", encoding="utf-8")
    result = run(
        "evaluate", small_index, tmp_path, "--json", "--run", tmp_path / "run.trec", "--measures", "nDCG@10 R@5"
    )
    report = json.loads(result.out)
    assert report["measures"] == {"nDCG@10": 1.0, "R@5": 1.0}
    assert report["queries"] == 1
    assert {"encode", "search", "rerank"} <= set(report["latency_ms"])
    assert set(report["latency_ms"]["search"]) == {"p50", "p95"}
    assert (tmp_path / "run.trec").read_text().startswith("1 Q0 vaccine 1 ")
    assert "notes" not in report


def judged(folder: Path, lines: str) -> Path:
    (folder / "qrels").mkdir()
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "how do vaccines work?"}\n', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")
    return folder


def test_evaluate_keeps_answers_for_a_run_of_the_same(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset, answers = judged(tmp_path, "1\tvaccine\t1\n"), tmp_path / "answers.jsonl"
    first = run("evaluate", small_index, dataset, "--answers", answers, "--json").out
    assert run("evaluate", small_index, dataset, "--answers", answers, "--json").out == first, "times and all"
    for option, differs in (("--no-rerank", "fusion.weight, reranker"), ("--exact", "search.exact")):
        message = one_line(run("evaluate", small_index, dataset, "--answers", answers, option))
        assert f"these answers come from another run (it differs in {differs})" in message
    message = one_line(run("evaluate", small_index, dataset, "--answers", answers, "--run", answers))
    assert "--run and --answers name the same file" in message


def test_evaluate_says_what_cannot_be_found(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset = judged(tmp_path, "1\tvaccine\t1\n1\tgone\t1\n1\tgone-too\t0\n")
    note = "1 passage that is judged relevant is not in the index"
    result = run("evaluate", small_index, dataset, "--no-rerank", "--measures", "R@100", "--json")
    assert json.loads(result.out)["measures"] == {"R@100": 0.5} and json.loads(result.out)["notes"] == [note]
    assert f"note: {note}" in run("evaluate", small_index, dataset, "--no-rerank").out


def test_a_run_that_cannot_be_written_is_known_before(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset = judged(tmp_path, "1\tvaccine\t1\n1\ttwo words\t1\n")
    assert "one word without white space, got 'two words'" in one_line(
        run("evaluate", small_index, dataset, "--run", tmp_path / "run.trec")
    )
    assert "cannot be written" in one_line(run("evaluate", small_index, dataset, "--run", "/proc/run.trec"))
    assert not list(tmp_path.glob("*.trec"))


def test_a_run_is_written_even_where_nobody_reads_the_figures(small_index: Path, tmp_path: Path) -> None:
    dataset = judged(tmp_path, "1\tvaccine\t1\n")
    run = tmp_path / "run.trec"
    rest = "| exec 0<&-; echo ${PIPESTATUS[0]}"
    result = in_a_shell(rest, "evaluate", small_index, dataset, "--no-rerank", "--json", "--run", run)
    assert result.stdout == "141\n" and run.read_text().startswith("1 Q0 ")


@pytest.mark.parametrize("option", ["--num-candidates", "--deadline-ms"])
def test_an_option_of_stage_2_needs_one(run, small_index: Path, tmp_path: Path, option: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "c.yaml").write_text("reranker: {model: none}\n", encoding="utf-8")
    message = one_line(run("query", small_index, "vaccines", option, 5, "--config", tmp_path / "c.yaml"))
    assert f"{option} is for the reranker, and this configuration has none" in message


def test_build_reports_what_it_built(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    result = run("build", corpus, tmp_path / "index", "--nbits", 4, "--json")
    facts = json.loads(result.out)
    assert (facts["passages"], facts["nbits"]) == (len(PASSAGES), 4)
    assert "an index is" in one_line(run("build", corpus, tmp_path / "index"))


def bad_corpus(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"_id": "1", "text": "fine"}\n{"_id": "2", "text": \n', "corpus.jsonl:2"),
        (b'{"_id": "1", "text": "fine"}\n["no object"]\n', "corpus.jsonl:2"),
        (b'{"_id": "1", "text": "fine"}\n{"_id": "2"}\n', "corpus.jsonl:2"),
        (b'{"_id": "1", "text": "  "}\n', "corpus.jsonl:1"),
        (b'{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}\n', "corpus.jsonl:2"),
        (b'{"_id": "1", "text": "caf\xe9"}\n', "corpus.jsonl:1"),
        (b'{"_id": "1", "text": "a\\u0000b"}\n', "corpus.jsonl:1"),
        (b'{"_id": "1", "text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "corpus.jsonl:1"),
        (b"", "corpus.jsonl"),
    ],
    ids=["malformed", "array", "no-text", "blank-text", "duplicate", "latin-1", "nul", "deep", "empty"],
)
def test_a_bad_corpus_is_one_line_and_leaves_nothing(run, tmp_path: Path, content: bytes, message: str) -> None:  # type: ignore[no-untyped-def]
    assert message in one_line(run("build", bad_corpus(tmp_path, content), tmp_path / "index"))
    assert not (tmp_path / "index").exists()


def test_a_missing_corpus_is_named(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "nowhere.jsonl" in one_line(run("build", tmp_path / "nowhere.jsonl", tmp_path / "index"))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("command", ["query", "info", "verify"])
def test_a_folder_that_is_no_index_is_named(run, tmp_path: Path, command: str) -> None:  # type: ignore[no-untyped-def]
    extra = ["text"] if command == "query" else []
    assert str(tmp_path) in one_line(run(command, tmp_path, *extra))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "0", "x"], "k must be a whole number of at least 1, got 0"),
        (["-k", "-3", "x"], "k must be a whole number of at least 1, got -3"),
        ([""], "query"),
        (["x" * 100_000], "100,000"),
        (["--num-candidates", "0", "x"], "num_candidates"),
        (["--deadline-ms", "0", "x"], "deadline_ms must be a number of milliseconds above 0, got 0.0"),
        (["--deadline-ms", "-5", "x"], "deadline_ms must be a number of milliseconds above 0, got -5.0"),
        (["--min-probability", "7", "x"], "a probability must be a number between 0 and 1, got 7.0"),
        (["--config", "nowhere.yaml", "x"], "nowhere.yaml"),
        (["--queries", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_a_bad_query_is_one_line(run, small_index: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    assert message in one_line(run("query", small_index, *arguments))


def test_a_bad_number_is_refused_before_the_models_are_loaded(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config = tmp_path / "config.yaml"
    config.write_text("encoder:\n  model: ./no-such-folder\n")
    query = ("query", small_index, "x", "--config", config)
    assert "no model './no-such-folder': expected 'embedded', an existing folder" in one_line(run(*query))
    assert "k must be" in one_line(run(*query, "-k", 0))
    assert "num_candidates must be" in one_line(run(*query, "--num-candidates", 0))
    assert "deadline_ms must be" in one_line(run(*query, "--deadline-ms", 0))
    assert "probability must be" in one_line(run(*query, "--min-probability", -1))
    rerank = ("rerank", "x", "--passages", tmp_path / "nowhere.txt", "--model", "./no-such-folder")
    assert "k must be" in one_line(run(*rerank, "-k", 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("encoder:\n  backend: torch\n", "backend 'torch' cannot read"),
        ("encoder:\n  dtype: bfloat16\n", "cannot run in bfloat16"),
        ("encoder:\n  model: .\n", "no encoder in it"),
        ("reranker:\n  model: .\n", "no reranker in it"),
        ("reranker:\n  max_tokens: 100000\n", "at most 512 tokens, got max_tokens 100000"),
        ("index:\n  nbits: 2\nindex:\n  nbits: 4\n", "the key 'index' is given twice"),
    ],
)
def test_settings_that_cannot_be_had_are_the_callers_mistake(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(settings)
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    assert message in one_line(run("build", corpus, tmp_path / "index", "--config", config))
    assert not (tmp_path / "index").exists()


def test_an_index_of_another_format_is_refused_by_every_command(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_index, copy)
    (manifest,) = (copy / "versions").glob("*.json")
    body = {**json.loads(manifest.read_bytes()), "format_version": 99}
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(body))
    for arguments in (["info", copy], ["verify", copy], ["verify", copy, "--json"], ["query", copy, "x"]):
        assert "written in format 99" in one_line(run(*arguments))


def test_an_unknown_model_says_how_to_get_it(
    run, small_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tmp_path / "config.yaml"
    config.write_text("reranker:\n  model: nobody/no-such-model\n")
    message = one_line(run("query", small_index, "x", "--config", config))
    assert "nobody/no-such-model" in message
    assert "hf download" in message


def test_a_dataset_of_another_collection_is_refused(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "tides"}\n', encoding="utf-8")
    for split in ("test", "train"):
        (tmp_path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n1\tunknown\t1\n")
    expected = "none of the 1 judged passages is in"
    assert expected in one_line(run("evaluate", small_index, tmp_path))
    assert expected in one_line(run("fit-fusion", small_index, tmp_path))


def test_an_output_file_that_is_a_folder_is_refused_at_once(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command, option in (
        ("evaluate", "--run"),
        ("evaluate", "--answers"),
        ("fit-fusion", "--out"),
        ("fit-fusion", "--scores"),
    ):
        message = one_line(run(command, tmp_path / "no-index", tmp_path / "no-dataset", option, tmp_path))
        assert f"{option} {tmp_path}: a folder is there" in message


def test_the_demonstration_wants_a_folder_of_its_own(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    assert "expected a new or an empty folder" in one_line(run("demo", "--folder", small_index))


def test_scores_and_fusion_file_are_two_files(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    message = one_line(run("fit-fusion", "i", "d", "--out", tmp_path / "f", "--scores", tmp_path / "x" / ".." / "f"))
    assert "its folder does not exist" in message
    message = one_line(run("fit-fusion", "i", "d", "--out", tmp_path / "f", "--scores", f"{tmp_path}//f"))
    assert "--out and --scores name the same file" in message


def test_an_unknown_measure_is_one_line(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "nDCG@10" in one_line(run("evaluate", small_index, tmp_path, "--measures", "nDCX@10"))


def test_usage_errors_exit_with_2(run, small_index: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("query", small_index).code == 2
    assert run("no-such-command").code == 2
    assert run("query", small_index, "x", "--queries", "y").code == 2


def test_help_and_version_exit_with_0(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--version").code == 0
    assert "build" in run("--help").out
    assert run().out == run("--help").out


def test_doctor_passes_its_self_test(run) -> None:  # type: ignore[no-untyped-def]
    report = json.loads(run("doctor", "--json").out)
    assert report["ok"], [check for check in report["checks"] if check["status"] == "failed"]
    assert [check["status"] for check in report["checks"] if check["name"].startswith("self-test")] == ["ok", "ok"]


def in_a_shell(rest: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = f"{shlex.join([*CLI, *map(str, arguments)])} {rest}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", ["info --json", "info --help", "query tides --no-rerank"])
def test_a_reader_that_left_ends_the_command_quietly(small_index: Path, command: str) -> None:
    name, *rest = command.split()
    result = in_a_shell("| exec 0<&-; echo ${PIPESTATUS[0]}", name, small_index, *rest)
    assert (result.stdout, result.stderr) == ("141\n", "")


@pytest.mark.parametrize(("rest", "message"), [(">/dev/full", "No space left"), (">&-", "standard output is closed")])
def test_output_that_cannot_be_written_is_one_line(small_index: Path, rest: str, message: str) -> None:
    result = in_a_shell(rest, "info", small_index, "--json")
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("limit", [2_000, 60_000, 200_000])
def test_a_build_that_fills_the_disk_is_resumed(tmp_path: Path, limit: int) -> None:
    corpus, index = write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index"
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    command = [sys.executable, "-c", full + CLI[2], "build", str(corpus), str(index)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "a limit on the size of files is reached" in result.stderr
    assert ("--resume continues the build" in result.stderr) == (index / "building").exists()
    with pytest.raises(SystemExit) as caught:
        main(["build", str(corpus), str(index), "--resume"])
    assert caught.value.code == 0
    assert Index.verify_path(index) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("chunk", [0, 1])
def test_a_stopped_build_is_resumed(tmp_path: Path, stop: signal.Signals, chunk: int) -> None:
    corpus, index = write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index"
    config = tmp_path / "config.yaml"
    config.write_text("index:\n  chunk_passages: 2\n")
    stopping = f"""
import os, signal, time
from hybrid_retrieval.encoders import Encoder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
encode, calls = Encoder.encode_windows, []
def encode_windows(*arguments, **options):
    calls.append(0)
    if len(calls) <= {chunk}:
        return encode(*arguments, **options)
    os.kill(os.getpid(), {int(stop)})
    time.sleep(60)
Encoder.encode_windows = encode_windows
"""
    build = ["build", str(corpus), str(index), "--config", str(config)]
    command = [sys.executable, "-c", stopping + CLI[2], *build]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if stop == signal.SIGINT:
        assert result.returncode == 130
        assert ("--resume continues the build" in result.stderr) == index.exists() == (chunk > 0)
        assert len(result.stderr.strip().splitlines()) == 1
    else:
        assert (result.returncode, result.stderr) == (-signal.SIGTERM, "")
    with pytest.raises(SystemExit) as caught:
        main([*build, "--resume"])
    assert caught.value.code == 0
    assert Index.open(index).passages == len(PASSAGES)


@pytest.mark.parametrize("script", ["build_index.py", "query.py", "evaluate.py"])
def test_the_scripts_take_the_same_arguments(script: str) -> None:
    path = Path(__file__).parent.parent / "scripts" / script
    for option in ("--help", "-h"):
        result = subprocess.run([sys.executable, str(path), option], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0
        assert "INDEX" in result.stdout


def test_measures_keep_the_names_that_they_were_asked_for_by(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset = judged(tmp_path, "1\tvaccine\t1\n")
    result = run("evaluate", small_index, dataset, "--no-rerank", "--measures", "MRR@10 RR@10 R@100 MAP", "--json")
    assert list(json.loads(result.out)["measures"]) == ["MRR@10", "R@100", "MAP"]


def test_judgements_without_a_relevant_passage_are_refused(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dataset = judged(tmp_path, "1\tvaccine\t0\n")
    assert "no passage is judged relevant" in one_line(run("evaluate", small_index, dataset, "--no-rerank"))


def test_a_table_is_reranked_by_its_records(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    table = tmp_path / "passages.csv"
    table.write_text('id,text\nb,"Vaccines train the immune system, slowly."\na,Tides follow the moon.\n')
    result = run("rerank", "how do vaccines work?", "--passages", table, "--json")
    assert [hit["passage_id"] for hit in json.loads(result.out)["hits"]] == ["b", "a"]


def test_text_is_no_query_of_an_index_of_vectors(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Whose encoder nobody knows: the embedded one's vectors would fit, and mean nothing."""
    index = tmp_path / "vectors"
    Index.from_vectors(index, ["a"], np.eye(256, dtype=np.float32)[:4], np.array([0, 4]))
    assert "was made from vectors" in one_line(run("query", index, "hello"))
    config = tmp_path / "config.yaml"
    config.write_text("encoder:\n  model: embedded\nreranker:\n  model: none\n")
    assert run("query", index, "hello", "--config", config).code == 0


def test_notes_of_a_run_go_to_standard_error(run, small_index: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    queries = tmp_path / "queries.tsv"
    queries.write_text("1\tvaccines\n2\ttides\n")
    result = run("query", small_index, "--queries", queries, "--format", "trec", "--deadline-ms", 0.001)
    assert all(line.split()[1] == "Q0" for line in result.out.splitlines())
    assert "note: query '1': the deadline of 0.001 ms left no time" in result.err and "1 more notes" in result.err


def test_a_finished_build_has_nothing_left_to_resume(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    corpus, index = write_corpus(tmp_path / "corpus.jsonl"), tmp_path / "index"
    run("build", corpus, index)
    assert "complete already" in run("build", corpus, index, "--resume").out
