from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.node.zygote.preload import THREAD_CAPS, cap_threads, changed, mtime_ns, preload


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    gc.enable()


def test_threads_of_numeric_libraries_are_capped_unless_the_operator_said_otherwise() -> None:
    environ = {"OMP_NUM_THREADS": "4"}
    cap_threads(environ)
    assert environ == dict.fromkeys(THREAD_CAPS, "1") | {"OMP_NUM_THREADS": "4"}


def test_files_of_preloaded_modules_and_of_what_they_import_are_known(folder: Path) -> None:
    (folder / "first_of_two").mkdir()
    (folder / "first_of_two" / "__init__.py").write_text("import second_of_two, json, pytest")
    (folder / "second_of_two.py").write_text("")
    done = preload(["first_of_two"], {})
    assert done.modules == ("first_of_two",)
    assert sorted(done.files) == [str(folder / "first_of_two" / "__init__.py"), str(folder / "second_of_two.py")]
    assert changed(done.files) == []
    os.utime(folder / "second_of_two.py", ns=(1, 1))
    assert changed(done.files) == [str(folder / "second_of_two.py")]
    (folder / "first_of_two" / "__init__.py").unlink()
    assert len(changed(done.files)) == 2
    assert mtime_ns(str(folder / "absent")) == 0


@pytest.mark.parametrize("text", ["1/0", "import no_such_module_here", "raise SystemExit(3)", "def ("])
def test_module_that_can_not_be_imported_is_refused_with_its_error_and_the_others_go_on(
    folder: Path, text: str
) -> None:
    (folder / "fails.py").write_text(text)
    (folder / "works.py").write_text("")
    done = preload(["fails", "works"], {})
    assert done.modules == ("works",)
    assert list(done.refused) == ["fails"]
    assert not done.tainted


def test_module_refused_before_is_not_imported_again(folder: Path) -> None:
    (folder / "explodes.py").write_text("raise AssertionError('imported')")
    done = preload(["explodes"], {"explodes": "left a thread"})
    assert (done.modules, done.refused) == ((), {"explodes": "left a thread"})
