"""Compiled programs that were damaged on disk are not run."""

from pathlib import Path

import jax
import pytest

from das_jax.training.compiled_programs import keep_compiled_programs


@pytest.fixture
def kept(tmp_path: Path):
    """`kept()`: what is said when a process begins."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}

    def keep() -> list[str]:
        said: list[str] = []
        keep_compiled_programs(tmp_path / "compiled", said.append)
        return said

    yield keep
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_program_that_changed_is_removed(kept, tmp_path: Path):
    assert kept() == []
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    (tmp_path / "compiled").mkdir()
    for name in ("a-cache", "b-cache", "c-cache"):
        (tmp_path / "compiled" / name).write_bytes(b"a program")
    assert kept() == []
    (tmp_path / "compiled" / "a-cache").write_bytes(b"a pr0gram")
    (tmp_path / "compiled" / "b-cache").unlink()
    (said,) = kept()
    assert said.endswith("a-cache is damaged: it is compiled anew")
    assert [path.name for path in (tmp_path / "compiled").iterdir()] == ["c-cache"]
    (tmp_path / "compiled" / "a-cache").write_bytes(b"another")
    assert kept() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_damaged_notes_are_written_anew(kept, tmp_path: Path, content: bytes):
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "a-cache").write_bytes(b"a program")
    kept()
    (notes,) = (tmp_path / "manifests").iterdir()
    whole = notes.read_bytes()
    notes.write_bytes(content)
    assert kept() == []
    assert notes.read_bytes() == whole
