"""The teacher's outputs on disk: found again, or made again."""

from pathlib import Path

import pytest
import torch

from search_jobs.teacher_outputs import TeacherOutputs


def test_outputs_are_found_again_for_their_key_and_a_damaged_file_is_said_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, cpu = tmp_path / "teacher-screen.pt", torch.device("cpu")
    TeacherOutputs(torch.rand(2, 3, 8, 8), None).write(file, "key")
    whole = file.read_bytes()
    assert TeacherOutputs.read(file, "key", cpu) is not None
    assert TeacherOutputs.read(file, "another", cpu) is None
    assert not caplog.messages
    for damaged in (b"", b"PK", b"garbage", whole[: len(whole) // 2], bytes(range(256)), b"\x80\x02]q\x00."):
        caplog.clear()
        file.write_bytes(damaged)
        assert TeacherOutputs.read(file, "key", cpu) is None
        assert caplog.messages == [f"{file} is damaged: the teacher makes its images again"]
