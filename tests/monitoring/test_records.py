"""Records are TensorBoard's, byte for byte."""

from __future__ import annotations

import io

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as slow
from tensorboard.summary.writer.record_writer import RecordWriter

from adaptmix.monitoring._records import crc32c, record


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 511, 512, 513, 514, 517, 1024, 5000])
def test_records_are_those_of_tensorboard(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == slow(data)
    file = io.BytesIO()
    RecordWriter(file).write(data)
    assert record(data) == file.getvalue()


def test_the_checksum_is_that_of_the_standard() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
