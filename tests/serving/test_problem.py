import json

from pigeonhole.serving.problem import Problem


def test_a_problem_is_what_rfc_9457_says_and_a_code_for_programs() -> None:
    body = json.loads(Problem(422, "blank_text", "text is blank").body("r-1"))
    assert body == {
        "type": "urn:pigeonhole:problem:blank_text",
        "title": "Unprocessable Content",
        "status": 422,
        "code": "blank_text",
        "detail": "text is blank",
        "request_id": "r-1",
    }
    assert set(json.loads(Problem(500, "internal_error").body())) == {"type", "title", "status", "code"}
