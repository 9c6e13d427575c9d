"""Files of questions: one, or those of a folder; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import EspanError
from pipelines.ruler.questions import read_questions
from tests.pipelines.ruler.material import hotpot_data, squad_data


def test_a_folder_of_files_holds_the_questions_of_all(tmp_path: Path) -> None:
    data = hotpot_data()
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(data))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.json").write_text(json.dumps(data[:20]))
    (parts / "2.json").write_text(json.dumps(data[20:]))
    one, several = read_questions("qa_hotpot", str(whole)), read_questions("qa_hotpot", str(parts))
    assert (one.questions, one.documents) == (several.questions, several.documents)
    assert one.sha256 == several.sha256
    whole.write_text(json.dumps(data[:-1]))
    assert read_questions("qa_hotpot", str(whole)).sha256 != one.sha256


def test_what_holds_no_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match=r"questions .*gone.json: cannot be read: No such file"):
        read_questions("qa_squad", str(tmp_path / "gone.json"))
    with pytest.raises(EspanError, match=r"the folder holds no JSON file"):
        read_questions("qa_squad", str(tmp_path))
    file = tmp_path / "data.json"
    for text in ("not JSON", '{"data": [{"title": "x"}]}', "[1]", json.dumps(hotpot_data())):
        file.write_text(text)
        with pytest.raises(EspanError, match=r"data.json: not the JSON of SQuAD 2.0 \(dev-v2.0.json\)"):
            read_questions("qa_squad", str(file))
    file.write_text(json.dumps(squad_data()))
    with pytest.raises(EspanError, match=r"data.json: not the JSON of HotpotQA"):
        read_questions("qa_hotpot", str(file))
    file.write_text("[]")
    with pytest.raises(EspanError, match=r"data.json: no question that has an answer"):
        read_questions("qa_hotpot", str(file))
