"""Preparing a corpus on many machines: Apache Beam tokenises its pieces and writes its chunks.

First every piece of the source becomes a part of the token streams. Their sizes say where each chunk
lies, so that then every range of chunks can be cut by itself. The chunks and their order are those of
one machine.
"""

import json
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tokenizers import Tokenizer

from das_jax.data import sources
from das_jax.data.settings import BeamSettings, Source
from das_jax.data.tokenization import TRAIN, Encoder, Part, Shares, Stream, write_parts
from das_jax.errors import UserError

# A worker keeps one shard in memory while it writes it.
MAX_SHARD_BYTES = 256 << 20


def write_streams(
    source: Source,
    encoder: Encoder,
    shares: Shares,
    cache_dir: epath.Path,
    directory: epath.Path,
    beam: BeamSettings,
) -> dict[str, Stream]:
    """Tokenises every piece of a source by itself.

    Args:
        source: The text; every worker must be able to read it.
        encoder: The tokenizer.
        shares: Of the documents, what goes to other splits than `train`.
        cache_dir: Where a worker keeps demo files.
        directory: Where the parts are written.
        beam: The runner.

    Returns:
        The stream of every split.

    Raises:
        UserError: Beam is missing or cannot run, or a piece cannot be read.
    """
    pieces = list(enumerate(sources.pieces(source)))
    # A file, because a tokenizer may be larger than a pipeline may be.
    (directory / "tokenizer.json").write_text(encoder.backend.to_str())
    write = partial(
        _write_part,
        encoder=partial(
            Encoder,
            special=encoder.special,
            unknown=encoder.unknown,
            never_masked=encoder.never_masked,
        ),
        as_text=encoder.backend.encode_special_tokens,
        shares=shares,
        cache_dir=str(cache_dir),
        directory=str(directory),
    )
    library, config = _library(), download_config(beam)
    with (
        explaining_failure(beam),
        library.Pipeline(config.beam_runner, config.beam_options) as pipeline,
    ):
        created = pipeline | "pieces" >> library.Create(pieces) | library.Reshuffle()
        _ = created | "tokenise" >> library.Map(write)
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("*.part.json"))]
    if len(found) < len(pieces):
        raise UserError(
            f"Apache Beam's workers wrote {len(found)} of {len(pieces)} parts where this machine sees them, "
            f"in {directory}: set data.beam.directory to a place that all of them share."
        )
    for part in found:
        if "error" in part:
            raise UserError(part["error"])
    splits = (TRAIN, *shares)
    return {
        split: Stream(tuple(Part(**part[split]) for part in found), encoder.special)
        for split in splits
    }


def download_config(beam: BeamSettings) -> tfds.download.DownloadConfig:
    """How TFDS, or anybody else, is to run Beam.

    Raises:
        UserError: Beam is missing, or does not know the runner or its options.
    """
    _library()
    from apache_beam.options.pipeline_options import PipelineOptions, TypeOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import create_runner

    with explaining_failure(beam):
        # What Beam calls DirectRunner would first fetch a program from the network and run it.
        runner = FnApiRunner() if beam.runner == "DirectRunner" else create_runner(beam.runner)
        options = PipelineOptions(shlex.split(beam.options))
        # It takes the kinds of sources for different types.
        options.view_as(TypeOptions).pipeline_type_check = False
        return tfds.download.DownloadConfig(
            beam_runner=runner,
            beam_options=options,
            try_download_gcs=False,
            max_shard_size=MAX_SHARD_BYTES,
        )


@contextmanager
def explaining_failure(beam: BeamSettings) -> Iterator[None]:
    """Turns what a runner raises into a UserError; runners raise anything, and exit for a bad option."""
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"Apache Beam does not take data.beam.options ({beam.options}): the line above says why."
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"Apache Beam's {beam.runner} failed ({lines[-1].rstrip('.')}): check data.beam; what it "
            "logged may say more."
        ) from error


def _library() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            "The setting data.beam needs Apache Beam: pip install 'das-jax[beam]', or leave data.beam out."
        ) from error
    return apache_beam


def _write_part(
    piece: tuple[int, Source],
    encoder: Callable[[Tokenizer], Encoder],
    as_text: bool,
    shares: Shares,
    cache_dir: str,
    directory: str,
) -> None:
    number, source = piece
    place = epath.Path(directory)
    # A runner may start a piece twice; its files must not get mixed up.
    prefix = place / f"{number:08}-{uuid.uuid4().hex}"
    backend = _tokenizer(str(place / "tokenizer.json"), as_text)
    result: dict[str, Any]
    try:
        documents = sources.documents(source, epath.Path(cache_dir))
        parts = write_parts(documents, encoder(backend), shares, prefix)
        result = {split: asdict(part) for split, part in parts.items()}
    except UserError as error:
        result = {"error": str(error)}
    (place / f"{number:08}.part.json").write_text(json.dumps(result))


@cache
def _tokenizer(path: str, as_text: bool) -> Tokenizer:
    tokenizer = Tokenizer.from_str(epath.Path(path).read_text())
    tokenizer.encode_special_tokens = as_text  # Not among what a tokenizer.json holds.
    return tokenizer
