"""What one process compiles, the next one loads, from a folder that belongs to its user alone."""

import os
import subprocess
import sys
import time

import jax
import pytest

from dl.system import compilation_cache
from dl.system.compilation_cache import MAX_AGE, MAX_BYTES, compiled_folder, use_compilation_cache

PROGRAM = """
import pathlib, sys
import jax
from dl.system.compilation_cache import use_compilation_cache
assert use_compilation_cache(pathlib.Path(sys.argv[1])) == ""
if jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
counts = []
jax.monitoring.register_event_listener(lambda event, **_: counts.append(event))
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((8, 8)))
print(jax.config.jax_compilation_cache_dir, counts.count("/jax/compilation_cache/cache_hits") > 0)
"""


def run(tmp_path, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # XLA says nothing about the CPU
    return done.stdout.split()


@pytest.fixture
def unset():
    """JAX without a cache folder."""
    names = ("dir", "max_size")
    before = {
        f"jax_compilation_cache_{name}": getattr(jax.config, f"jax_compilation_cache_{name}")
        for name in names
    }
    seconds = "jax_persistent_cache_min_compile_time_secs"
    before[seconds] = getattr(jax.config, seconds)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_next_process_loads_what_was_compiled(tmp_path):
    folder, is_hit = run(tmp_path)
    assert is_hit == "False"
    assert run(tmp_path) == [folder, "True"]
    assert folder.startswith(f"{tmp_path}/cache/compiled/jaxlib-{jax.lib.__version__}-")
    for path in (folder, os.path.dirname(folder)):
        assert os.stat(path).st_mode & 0o777 == 0o700


def test_what_the_user_chose_is_left_alone(tmp_path):
    chosen = tmp_path / "chosen"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(chosen))[0] == str(chosen)
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ["None", "False"]
    assert not (tmp_path / "cache").exists()


def test_the_cache_has_a_limit(unset, tmp_path):
    assert use_compilation_cache(tmp_path) == ""
    assert jax.config.jax_compilation_cache_max_size == MAX_BYTES


def test_a_folder_of_another_user_is_not_used(unset, monkeypatch, tmp_path):
    assert use_compilation_cache(tmp_path) == ""
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert use_compilation_cache(tmp_path) == f"{tmp_path}/compiled belongs to another user"
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_others_may_write_is_closed_to_them(unset, tmp_path):
    compiled_folder(tmp_path).mkdir(parents=True)
    compiled_folder(tmp_path).chmod(0o777)
    assert use_compilation_cache(tmp_path) == ""
    assert compiled_folder(tmp_path).stat().st_mode & 0o777 == 0o700


def test_a_place_where_nothing_can_be_made_is_named(unset, tmp_path):
    (tmp_path / "compiled").write_text("")
    assert str(tmp_path / "compiled") in use_compilation_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir is None


def test_code_for_another_cpu_lies_elsewhere(unset, monkeypatch, tmp_path):
    here = compiled_folder(tmp_path)
    monkeypatch.setattr(compilation_cache.Path, "read_text", lambda *_, **__: "flags\t: fpu avx512f\n")
    assert compiled_folder(tmp_path).parent == here.parent
    assert compiled_folder(tmp_path) != here


def test_an_entry_that_was_cut_off_does_not_stop_the_next_ones(unset, tmp_path):
    folder = compiled_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "jit_f-cache").write_bytes(b"")
    assert use_compilation_cache(tmp_path) == ""
    assert (folder / "jit_f-atime").exists()


def test_folders_that_were_not_used_for_long_are_removed(unset, tmp_path):
    names = {"jaxlib-0.1-old": MAX_AGE + 60, "jaxlib-0.2-new": 60}
    for name, age in names.items():
        (folder := compiled_folder(tmp_path).parent / name).mkdir(parents=True)
        os.utime(folder, times=(time.time() - age,) * 2)
    assert use_compilation_cache(tmp_path) == ""
    assert {f.name for f in compiled_folder(tmp_path).parent.iterdir()} == {
        "jaxlib-0.2-new",
        compiled_folder(tmp_path).name,
    }
