"""A batch does every line once, in spite of kills, full queues and servers that go away, and says what became of each."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from registry.errors import Conflict, InvalidInput, Tampered
from server.batch.batch import TIMES_OVER, TRIES, Batch, ServerAway, seconds_of
from server.batch.output_folder import PROGRESS, RESULTS, OutputFolder
from server.batch.prompts_file import PromptsFile
from server.batch.throttle import LONG, Throttle
from server.errors import Unauthorized


class Server:
    """Draws each prompt as its own bytes; `says` may answer in its place."""

    def __init__(self):
        self.asked, self.at_once, self.most = [], 0, 0
        self.says, self.queue_seconds = lambda prompt: None, 0.0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.002)
        self.at_once -= 1
        if isinstance(said := self.says(body["prompt"]), BaseException):
            raise said
        images = [base64.b64encode(f"{body['prompt']} {i}".encode()).decode() for i in range(body.get("num_images", 1))]
        whole = {"images": images, "output_format": body.get("output_format", "png"), "tier": "fast", "macs": 1}
        return said or httpx.Response(200, json=whole, headers={"X-Flexi-Queue-Seconds": str(self.queue_seconds)})

    @property
    def prompts(self) -> list[str]:
        return sorted(body["prompt"] for body in self.asked)


def refusal(status: int, code: str = "invalid_input", param: str | None = None, **headers: str) -> httpx.Response:
    error = {"code": code, "message": f"{code} it is", "param": param, "request_id": "r"}
    return httpx.Response(status, json={"error": error}, headers=headers)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps(f"p{i}") for i in range(1, 6)]
    lines[2:2] = ["", json.dumps({"prompt": "four", "num_images": 2, "output_format": "webp", "priority": "normal"})]
    path.write_text("\n".join(lines) + "\n")
    return path


LINES = [1, 2, 4, 5, 6, 7]


def run(server, prompts, out, throttle=None, retry=False, **options):
    file = PromptsFile.read(prompts)
    folder = OutputFolder(out, file.digest)
    if retry:
        folder.forget_errors()

    async def go():
        async with httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://test") as client:
            await Batch(client, folder, throttle or Throttle(4), retry_after=0.001, **options).run(file.bodies)

    try:
        asyncio.run(go())
    finally:
        folder.close()
    return [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]


def test_each_line_has_its_images_and_its_answer_in_the_order_of_the_file(prompts, tmp_path):
    server, out = Server(), tmp_path / "out"
    results = run(server, prompts, out)
    assert [result["line"] for result in results] == LINES
    assert results[2]["files"] == ["000004.webp", "000004-2.webp"]
    assert (out / "000004-2.webp").read_bytes() == b"four 1"
    assert results[0] == {"line": 1, "files": ["000001.png"], "answer": {"output_format": "png", "tier": "fast", "macs": 1}}
    assert {(body["priority"], body["response_format"]) for body in server.asked} == {("background", "b64_json")}


def test_a_second_run_does_nothing_again_and_a_third_one_says_the_same(prompts, tmp_path):
    server, out = Server(), tmp_path / "out"
    first = run(server, prompts, out)
    assert run(server, prompts, out) == first
    assert len(server.asked) == len(LINES)


@pytest.mark.parametrize("left", range(40, 0, -7))
def test_after_a_kill_no_line_that_is_done_is_done_again_and_every_other_one_is(prompts, tmp_path, left):
    """The end of its memory is cut off anywhere, as a power cut may do it."""
    server, out = Server(), tmp_path / "out"
    first = run(server, prompts, out)
    whole = (out / PROGRESS).read_bytes()
    cut = whole[: len(whole) * left // 41]
    (out / PROGRESS).write_bytes(cut)
    (out / RESULTS).unlink()
    done = {json.loads(line)["line"] for line in cut.splitlines(keepends=True)[1:] if line.endswith(b"\n")}
    server.asked.clear()
    assert run(server, prompts, out) == first
    assert len(server.asked) == len(LINES) - len(done)


def test_a_run_that_is_interrupted_keeps_what_it_did(prompts, tmp_path):
    server, out = Server(), tmp_path / "out"
    server.says = lambda prompt: KeyboardInterrupt() if prompt == "p4" else None
    with pytest.raises(KeyboardInterrupt):
        run(server, prompts, out, Throttle(1))
    assert [json.loads(line)["line"] for line in (out / RESULTS).read_text().splitlines()] == LINES[:4]
    server.says, server.asked[:] = lambda prompt: None, []
    assert len(run(server, prompts, out)) == len(LINES)
    assert server.prompts == ["p4", "p5"]


def test_a_line_that_is_refused_has_its_error_and_holds_up_nobody(prompts, tmp_path):
    server, out = Server(), tmp_path / "out"
    server.says = lambda prompt: (
        refusal(400) if prompt == "p2" else httpx.Response(500, text="<html>") if prompt == "p3" else None
    )
    results = {result["line"]: result for result in run(server, prompts, out)}
    assert results[2]["error"] == {"code": "invalid_input", "message": "invalid_input it is", "param": None}
    assert results[5]["error"]["message"].startswith("status 500")
    assert sum("error" in result for result in results.values()) == 2
    server.says, server.asked[:] = lambda prompt: None, []
    assert run(server, prompts, out) == list(results.values()), "an error is an end, too"
    assert not any("error" in result for result in run(server, prompts, out, retry=True))
    assert server.prompts == ["p2", "p3"]


@pytest.mark.parametrize("status", [429, 503, 504, 408])
def test_a_server_that_has_too_much_to_do_is_asked_again_when_it_says(prompts, tmp_path, status):
    server, left = Server(), {"p1": 3, "four": 1}

    def says(prompt):
        left[prompt] = left.get(prompt, 0) - 1
        return refusal(status, "overloaded", **{"Retry-After": "0.001"}) if left[prompt] >= 0 else None

    server.says = says
    assert not any("error" in result for result in run(server, prompts, tmp_path / "out"))
    assert len(server.asked) == len(LINES) + 4


def test_a_server_that_goes_away_for_a_while_is_waited_for_and_one_that_stays_away_is_not(prompts, tmp_path):
    server, left = Server(), [httpx.ConnectError("no"), httpx.ReadError("no"), httpx.ReadTimeout("no")]
    server.says = lambda prompt: left.pop() if left else None
    assert len(run(server, prompts, tmp_path / "out")) == len(LINES)
    server.says = lambda prompt: httpx.ConnectError("no")
    with pytest.raises(ServerAway, match="no answer for 0 s"):
        run(server, prompts, tmp_path / "other", patience=0.0)


def test_a_line_ends_when_its_own_time_is_over_or_when_it_took_too_long_too_often(prompts, tmp_path):
    prompts.write_text('{"prompt": "short", "deadline_ms": 1}\n"long"\n"well"\n')
    server = Server()
    over = lambda: refusal(504, "deadline_exceeded", **{"X-Should-Retry": "false"})  # noqa: E731
    server.says = lambda prompt: over() if prompt in ("short", "long") else None
    results = run(server, prompts, tmp_path / "out")
    assert [result.get("error", {}).get("code") for result in results] == ["deadline_exceeded", "deadline_exceeded", None]
    assert server.prompts == ["long"] * TIMES_OVER + ["short", "well"]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", 5.0), ("nan", 5.0), ("inf", 5.0), (None, 5.0), ("", 5.0),
        ("Sat, 01 Nov 2025 12:00:00 GMT", 0.0),
    ],
)  # fmt: skip
def test_how_long_to_wait_is_read_as_seconds_or_as_a_date(said, seconds):
    assert seconds_of(said, 5.0) == seconds


def test_a_date_to_come_is_waited_for():
    then = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3590 < seconds_of(then, 5.0) <= 3600


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_speaks_for_a_server_that_is_gone_is_no_server(prompts, tmp_path, status):
    server = Server()
    server.says = lambda prompt: httpx.Response(status, text="<html>Bad gateway</html>", headers={"Retry-After": "0"})
    with pytest.raises(ServerAway, match=str(status)):
        run(server, prompts, tmp_path / "out", patience=0.0)
    left = [3]

    def says(prompt):
        left[0] -= 1
        return refusal(503, "not_ready", **{"Retry-After": "0"}) if left[0] >= 0 else None

    server.says = says
    assert len(run(server, prompts, tmp_path / "other", patience=0.0)) == len(LINES), "one that starts has answered"


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_a_proxy_says_is_no_lines_error_however_often_it_says_so(prompts, tmp_path, status):
    prompts.write_text('{"prompt": "short", "deadline_ms": 1}\n"long"\n')
    server, left = Server(), {"short": TIMES_OVER + 1, "long": TIMES_OVER + 1}

    def says(prompt):
        left[prompt] -= 1
        return httpx.Response(status, text="<html>Gateway</html>", headers={"Retry-After": "0"}) if left[prompt] >= 0 else None

    server.says = says
    assert not any("error" in result for result in run(server, prompts, tmp_path / "out"))
    assert server.prompts == ["long"] * (TIMES_OVER + 2) + ["short"] * (TIMES_OVER + 2)


def of_proxy(status: int) -> httpx.Response:
    return httpx.Response(status, text="<html>Gateway</html>", headers={"Retry-After": "0"})


def not_ready(param: str | None) -> httpx.Response:
    return refusal(503, "not_ready", param, **{"Retry-After": "0"})


@pytest.mark.parametrize("said", [lambda: not_ready("model"), lambda: not_ready(None), lambda: of_proxy(504)])
@pytest.mark.parametrize("most", [1, 4])
def test_a_line_that_is_never_answered_keeps_no_other_waiting(prompts, tmp_path, said, most):
    """It comes first in the file, and again only when another one has had its turn."""
    prompts.write_text("".join(f'"p{i}"\n' for i in range(9)))
    server = Server()

    def says(prompt):
        if prompt != "p0":
            return None
        left = 9 - len({body["prompt"] for body in server.asked})
        return said() if left else refusal(400)

    server.says = says
    results = run(server, prompts, tmp_path / "out", Throttle(most))
    assert [result["line"] for result in results if "error" in result] == [1]
    assert len(results) == 9
    assert server.prompts.count("p0") <= 9


def test_a_model_that_cannot_be_served_for_long_is_its_lines_error_and_no_other_lines(prompts, tmp_path):
    lines = [{"prompt": f"b{i}", "model": "broken"} for i in range(3)] + [f"p{i}" for i in range(3)]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    server = Server()
    server.says = lambda prompt: not_ready("model") if prompt.startswith("b") else None
    results = run(server, prompts, tmp_path / "out", patience=0.0)
    assert [result.get("error", {}).get("param") for result in results] == ["model"] * 3 + [None] * 3
    assert sum(prompt.startswith("b") for prompt in server.prompts) == TRIES + 2, "its other lines are asked for once more"
    server.says, server.asked[:] = lambda prompt: None, []
    assert not any("error" in result for result in run(server, prompts, tmp_path / "out", retry=True))
    assert server.prompts == ["b0", "b1", "b2"]


@pytest.mark.parametrize("param", ["model", None])
def test_a_model_that_cannot_be_served_for_a_while_is_waited_for(prompts, tmp_path, param):
    server, left = Server(), [3 * TRIES]

    def says(prompt):
        left[0] -= 1
        return not_ready(param) if left[0] >= 0 else None

    server.says = says
    assert not any("error" in result for result in run(server, prompts, tmp_path / "out"))


def test_the_time_for_which_a_model_is_waited_for_begins_anew_when_it_answers(prompts, tmp_path):
    server, tries = Server(), Counter()

    def says(prompt):
        tries[prompt] += 1
        return not_ready("model") if tries[prompt] < TRIES else None

    server.says = says
    assert not any("error" in result for result in run(server, prompts, tmp_path / "out", Throttle(1), patience=1.0))
    assert set(tries.values()) == {TRIES}


def test_a_line_that_takes_too_long_for_a_proxy_ends_so_where_others_are_made_meanwhile(prompts, tmp_path):
    prompts.write_text("".join(f'"p{i}"\n' for i in range(3 * TIMES_OVER)))
    server = Server()
    server.says = lambda prompt: of_proxy(504) if prompt == "p0" else None
    first, *others = run(server, prompts, tmp_path / "out", Throttle(1))
    assert first["error"]["message"].startswith("status 504")
    assert not any("error" in result for result in others)
    assert server.prompts.count("p0") <= TIMES_OVER + 1


def test_an_error_says_nothing_of_the_servers_queue(prompts, tmp_path):
    server = Server()
    server.says = lambda prompt: refusal(400)
    throttle = Throttle(8)
    run(server, prompts, tmp_path / "out", throttle)
    assert throttle.limit == 1


def test_a_wrong_key_ends_the_batch_and_is_no_lines_error(prompts, tmp_path):
    server = Server()
    server.says = lambda prompt: refusal(401, "unauthorized")
    with pytest.raises(Unauthorized):
        run(server, prompts, tmp_path / "out")
    assert (tmp_path / "out" / RESULTS).read_text() == ""


def test_two_batches_do_not_share_a_folder_and_another_file_is_refused(prompts, tmp_path):
    out = tmp_path / "out"
    file = PromptsFile.read(prompts)
    folder = OutputFolder(out, file.digest)
    with pytest.raises(Conflict, match="another batch"):
        OutputFolder(out, file.digest)
    folder.close()
    with pytest.raises(InvalidInput, match="other prompts"):
        OutputFolder(out, "0" * 64)
    (out / PROGRESS).write_text("[1]\n")
    with pytest.raises(Tampered):
        OutputFolder(out, file.digest)


@pytest.mark.parametrize(("text", "place"), [("[1]", 1), ('"x"\n{', 2), ("\n\n3", 3), ("", None), ("\n \n", None)])
def test_a_file_that_is_none_is_refused_with_the_line(tmp_path, text, place):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=f"line {place}" if place else "no line"):
        PromptsFile.read(path)


def test_it_asks_for_more_at_a_time_while_the_server_has_room_and_for_fewer_when_it_has_not():
    now = [100.0]
    throttle = Throttle(8, lambda: now[0])
    for _ in range(20):
        throttle.served(0.0)
    assert throttle.limit == 8
    throttle.served(LONG + 1)
    assert throttle.limit == 7
    throttle.refused(2.0)
    throttle.refused(3.0)
    assert throttle.limit == 3, "refused at the same time: once"
    now[0] += 3.0
    for _ in range(5):
        throttle.refused(1.0)
        now[0] += 1.0
    assert throttle.limit == 1


def test_while_the_server_has_much_to_do_one_at_a_time_is_asked_for(prompts, tmp_path):
    server = Server()
    server.queue_seconds = LONG + 1
    run(server, prompts, tmp_path / "out", Throttle(8))
    assert server.most == 1
    assert len(server.asked) == len(LINES)


def test_after_a_refusal_nobody_asks_before_the_time(prompts, tmp_path):
    now, slept, server = [0.0], [], Server()

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    refused = iter([refusal(429, "overloaded", **{"Retry-After": "7"})])
    server.says = lambda prompt: next(refused, None)
    run(server, prompts, tmp_path / "out", Throttle(4, lambda: now[0], sleep))
    assert slept == [7.0]


def test_the_folder_of_a_batch_holds_only_what_it_says(prompts, tmp_path):
    run(Server(), prompts, tmp_path / "out")
    images = {"000001.png", "000002.png", "000004.webp", "000004-2.webp", "000005.png", "000006.png", "000007.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == images | {PROGRESS, RESULTS}
