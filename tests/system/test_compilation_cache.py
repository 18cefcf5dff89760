"""What one process compiles, the next one loads, from a folder that belongs to its user alone."""

import os
import subprocess
import sys
import time

import jax
import pytest

from dl.system import compilation_cache
from dl.system.compilation_cache import MAX_AGE, MAX_BYTES, cache_folder, use_compilation_cache

PROGRAM = """
import jax
from dl.system.compilation_cache import use_compilation_cache
assert use_compilation_cache() == ""
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
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**inherited, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # XLA says nothing about the CPU
    return done.stdout.split()


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """JAX without a cache folder, and an empty one for the user."""
    names = ("dir", "max_size")
    before = {
        f"jax_compilation_cache_{name}": getattr(jax.config, f"jax_compilation_cache_{name}")
        for name in names
    }
    seconds = "jax_persistent_cache_min_compile_time_secs"
    before[seconds] = getattr(jax.config, seconds)
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_next_process_loads_what_was_compiled(tmp_path):
    folder, is_hit = run(tmp_path)
    assert is_hit == "False"
    assert run(tmp_path) == [folder, "True"]
    assert folder.startswith(f"{tmp_path}/cache/dl/compiled/jaxlib-{jax.lib.__version__}-")
    for path in (folder, os.path.dirname(folder)):
        assert os.stat(path).st_mode & 0o777 == 0o700


def test_what_the_user_chose_is_left_alone(tmp_path):
    chosen = tmp_path / "chosen"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(chosen))[0] == str(chosen)
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ["None", "False"]
    assert not (tmp_path / "cache").exists()


def test_the_cache_has_a_limit(unset):
    assert use_compilation_cache() == ""
    assert jax.config.jax_compilation_cache_max_size == MAX_BYTES


def test_a_folder_of_another_user_is_not_used(unset, monkeypatch, tmp_path):
    assert use_compilation_cache() == ""
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert use_compilation_cache() == f"{tmp_path}/dl/compiled belongs to another user"
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_others_may_write_is_closed_to_them(unset):
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o777)
    assert use_compilation_cache() == ""
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_a_place_where_nothing_can_be_made_is_named(unset, tmp_path):
    (tmp_path / "dl").write_text("")
    assert str(tmp_path / "dl") in use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_home_nothing_is_kept(unset, monkeypatch):
    def no_home():
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compilation_cache.Path, "home", no_home)
    assert use_compilation_cache() == "there is no home folder; set XDG_CACHE_HOME"


def test_code_for_another_cpu_lies_elsewhere(unset, monkeypatch):
    here = cache_folder()
    monkeypatch.setattr(compilation_cache.Path, "read_text", lambda *_, **__: "flags\t: fpu avx512f\n")
    assert cache_folder().parent == here.parent
    assert cache_folder() != here


def test_an_entry_that_was_cut_off_does_not_stop_the_next_ones(unset):
    folder = cache_folder()
    folder.mkdir(parents=True)
    (folder / "jit_f-cache").write_bytes(b"")
    assert use_compilation_cache() == ""
    assert (folder / "jit_f-atime").exists()


def test_folders_that_were_not_used_for_long_are_removed(unset):
    names = {"jaxlib-0.1-old": MAX_AGE + 60, "jaxlib-0.2-new": 60}
    for name, age in names.items():
        (folder := cache_folder().parent / name).mkdir(parents=True)
        os.utime(folder, times=(time.time() - age,) * 2)
    assert use_compilation_cache() == ""
    assert {f.name for f in cache_folder().parent.iterdir()} == {"jaxlib-0.2-new", cache_folder().name}
