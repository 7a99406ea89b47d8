"""Start, help, errors, exit codes, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vitembed import __version__
from vitembed.errors import BadImage, VitembedError

COMMANDS = (
    *("pretrain", "index", "forget", "search", "dupes", "map", "embed", "export"),
    *("label", "probe", "classify", "finetune", "info", "models", "configs", "doctor", "demo"),
)
HEAVY = ("torch", "faiss", "pytorch_lightning", "torchvision", "sklearn", "pyarrow", "timm", "PIL", "numpy", "rich")


def run_python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, **options
    )


def test_help_loads_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['vitembed', '--help']\n"
        "try: runpy.run_module('vitembed_cli', run_name='__main__')\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "pretrain" in shown.stdout
    assert shown.stderr.strip() == "[]"


def test_importing_vitembed_loads_nothing_heavy():
    heavy = run_python(f"import sys, vitembed; print([name for name in {HEAVY} if name in sys.modules])").stdout
    assert heavy.strip() == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no account of children's time")
def test_help_takes_less_than_half_a_second_of_processor_time():
    import resource

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vitembed_cli", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # Processor time, and the best of several: what else the machine does must not decide.
    assert min(seconds() for _ in range(3)) < 0.5


def test_version(vitembed):
    assert vitembed("--version").stdout == f"vitembed {__version__}\n"


def test_installed_script_runs():
    script = Path(sys.executable).with_name("vitembed")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert __version__ in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(vitembed, command):
    text = vitembed(command, "--help").stdout
    assert text.startswith(f"Usage: vitembed {command} ")
    assert "\x1b" not in text
    assert vitembed(command, "-h").stdout == text


def test_no_other_commands(app):
    from typer.main import get_command

    assert tuple(get_command(app).commands) == COMMANDS


def test_docs_are_current():
    made = run_python("from vitembed_cli.docs import command_line_docs; print(command_line_docs(), end='')").stdout
    written = Path(__file__).parents[2] / "docs" / "cli.md"
    assert written.read_text(encoding="utf-8") == made, "run `make docs`"
    for command in COMMANDS:
        assert f"## vitembed {command}\n" in made


@pytest.mark.parametrize(
    "terminal", [{"COLUMNS": "40"}, {"COLUMNS": "200", "FORCE_COLOR": "1", "TERM": "xterm-256color"}]
)
def test_docs_do_not_depend_on_the_terminal(terminal):
    code = "from vitembed_cli.docs import command_line_docs; print(command_line_docs(), end='')"
    assert run_python(code, env={**os.environ, **terminal}).stdout == run_python(code).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serach"], "No such command 'serach'"),
        (["search"], "Missing argument 'QUERY...'"),
        (["search", "a.png", "-k", "0"], "-k"),
        (["embed", "x"], "--output"),
        (["embed", "x", "-o", "out.txt"], "'out.txt' ends in none of .npy, .npz, .parquet, .csv, .safetensors"),
        (["embed", "x", "-o", "out.npz", "--pool", "max"], "--pool"),
        (["pretrain", "seed=1"], "only key=value settings were given"),
        (["pretrain", "x", "--time-budget", "soon"], "'soon' is not a time such as 30s, 20m or 2h"),
        (["pretrain", "x", "--time-budget", "0s"], "'0s' is not a time"),
        (["pretrain", "x", "--time-budget", "-5m"], "'-5m' is not a time"),
        (["demo", "--dataset", "mnist"], "--dataset"),
    ],
)
def test_wrong_usage_exits_with_2(vitembed, arguments, message):
    result = vitembed(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "a.png"], "Error: no workspace at or above "),
        (["info"], "Error: no workspace at or above "),
        (["embed", ".", "-o", "v.npz"], "Error: no model yet: run vitembed pretrain first"),
        (["search", "a.png", "--workspace", "nowhere"], "named by --workspace"),
        (["index", ".", "--model", "nowhere"], "Error: no model at nowhere"),
        (["pretrain", "nowhere"], "nowhere"),
        (["configs", "smal"], "Did you mean 'small'?"),
        (["probe", "nowhere"], "Error: no such file or folder: nowhere"),
        (["info", "nowhere.npz"], "Error: nowhere.npz: no such file"),
        (["index", "nowhere.npz"], "Error: nowhere.npz: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_1(vitembed, arguments, message):
    result = vitembed(*arguments, code=1)
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_failed_command_leaves_no_workspace(vitembed):
    vitembed("index", ".", code=1)
    vitembed("search", "a.png", code=1)
    assert list(Path.cwd().iterdir()) == []


@pytest.fixture
def app_that(app):
    """The app's own group around one command, which does what it is told."""

    def make(action):
        own = typer.Typer(cls=app.info.cls, rich_markup_mode=None, pretty_exceptions_enable=False)
        own.callback()(lambda: None)
        own.command("act")(lambda: action())
        return CliRunner().invoke(own, ["act"])

    return make


def test_what_becomes_of_exceptions(app_that):
    def fail_with(error):
        def action():
            raise error

        return app_that(action)

    mistake = fail_with(VitembedError("expected a, got b: do c"))
    assert (mistake.exit_code, mistake.stderr) == (1, "Error: expected a, got b: do c\n")
    bad = fail_with(BadImage("x\udcff.png", "truncated"))
    assert (bad.exit_code, bad.stderr) == (1, "Error: x\\udcff.png: truncated\n")
    interrupted = fail_with(KeyboardInterrupt())
    assert (interrupted.exit_code, interrupted.stderr) == (130, "Interrupted.\n")
    bug = fail_with(ZeroDivisionError("ours"))
    assert isinstance(bug.exception, ZeroDivisionError)


def test_a_bug_keeps_its_traceback():
    code = (
        "import sys, vitembed.recipes\n"
        "vitembed.recipes.packaged_configs = lambda: 1 / 0\n"
        "sys.argv = ['vitembed', 'configs']\n"
        "from vitembed_cli.main import app; app()"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("Traceback (most recent call last)")
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE there")
@pytest.mark.parametrize("num_read", [0, 1])
def test_a_reader_that_leaves_early_hears_no_complaint(num_read):
    code = (
        "import sys, vitembed.recipes\n"
        "vitembed.recipes.packaged_configs = lambda: {f'recipe{n}': 'x' * 100 for n in range(1_000)}\n"
        "sys.argv = ['vitembed', 'configs']\n"
        "from vitembed_cli.main import app; app()"
    )
    # Unbuffered, Python takes a write that was cut short for a whole one and never learns that the reader is gone.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        process.stdout.read(num_read)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_logs_go_to_stderr_once(vitembed, monkeypatch):
    import logging

    from vitembed import recipes

    def noisy():
        logging.getLogger("vitembed").info("a log line")
        logging.getLogger("vitembed").debug("for developers")
        return {"name": "line"}

    monkeypatch.setattr(recipes, "packaged_configs", noisy)
    vitembed("configs")
    result = vitembed("configs")
    assert result.stderr == "a log line\n"
    assert result.stdout == "name  line\n"


def test_a_terminal_without_unicode_is_no_obstacle(tmp_path):
    (tmp_path / "émoji 🐈.yaml").write_text("# größer: x", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    shown = subprocess.run(
        [sys.executable, "-m", "vitembed_cli", "configs", "émoji 🐈.yaml"],
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert shown.stdout == b"# gr\\xf6\\xdfer: x\n"


def test_configs(vitembed):
    from vitembed.recipes import packaged_configs

    listed = vitembed("configs").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(packaged_configs())
    assert "model:" in vitembed("configs", "smoke").stdout


def test_doctor(vitembed, workspace):
    result = vitembed("doctor")
    for word in ("torch", "faiss", "pillow", "device used", "AVIF", ".vitembed", "32-d vectors"):
        assert word in result.stdout
    (workspace / ".vitembed" / "model" / "config.json").write_text("{", encoding="utf-8")
    result = vitembed("doctor", code=1)
    assert "PROBLEM" in result.stdout
    assert result.stderr == "Error: 1 problem found\n"


def test_doctor_names_a_library_that_does_not_load(vitembed, monkeypatch):
    import importlib

    original = importlib.import_module

    def import_module(name, *rest):
        if name == "pyarrow":
            raise ImportError("libarrow.so: cannot open")
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)
    result = vitembed("doctor", code=1)
    assert "PROBLEM: cannot be imported: ImportError: libarrow.so: cannot open" in result.stdout


def test_json_is_one_document_for_machines():
    code = "from vitembed_cli.output import say_json; import os; say_json({'path': os.fsdecode(b'\\xc3\\xa9\\xff')})"
    text = run_python(code).stdout
    assert json.loads(text) == {"path": "é\udcff"}
    assert "é\\udcff" in text  # readable where it is text, escaped where it is not


def test_numbers_that_are_no_json_are_a_bug():
    with pytest.raises(subprocess.CalledProcessError):
        run_python("from vitembed_cli.output import say_json; say_json(float('nan'))")
