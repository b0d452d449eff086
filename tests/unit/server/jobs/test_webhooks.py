"""Webhooks: signed as the standard says, tried again, and led to no address that is not public."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from ipaddress import ip_address

import pytest
from job_records import ended
from webhook_receiver import Receiver

from registry.errors import InvalidInput
from server.jobs.webhooks import WebhookSender
from server.webhooks import delivery
from server.webhooks.addresses import checked_url, is_public, public_address, resolved
from server.webhooks.delivery import Delivery
from server.webhooks.signature import signed, webhook_secret

SECRET = b"k" * 24
NO_HOSTS = ["a..b.com", ".example.com", f"{'a' * 64}.com", "xn--zzzz", "xn--a", "[::1%25eth0]", "[v1.x]"]


@pytest.fixture
def receiver():
    made = []

    def make(*statuses, **options):
        made.append(Receiver(*statuses, **options))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def deliver(url, end=None, **options):
    options = {"private": True, "pauses": (0.0, 0.0)} | options
    return asyncio.run(WebhookSender(Delivery(SECRET, **options)).deliver(url, end or ended("succeeded")))


def test_a_call_says_what_ended_and_is_signed_as_the_standard_says(receiver):
    server, end = receiver(204), ended("failed")
    assert deliver(server.url, end)
    ((path, headers, body),) = server.calls
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == "/done?x=1"
    assert headers["host"] == f"127.0.0.1:{server.server_port}"
    event = json.loads(body)
    assert event["type"] == "job.failed"
    assert (event["data"]["id"], event["data"]["state"]) == (end.job.id, "failed")
    assert event["data"]["error"]["code"] == "generation_failed"
    assert end.job.request.prompt not in body.decode()
    assert headers["webhook-id"] == end.job.id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    content = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.new(SECRET, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_the_standards_own_example_has_the_standards_own_signature():
    """https://github.com/standard-webhooks/standard-webhooks, its specification's test vector."""
    secret = webhook_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_!!!!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "QUJD" * 30])
def test_what_is_no_secret_is_refused(text):
    with pytest.raises(ValueError, match="whsec_"):
        webhook_secret(text)


def test_a_receiver_that_fails_is_called_again_with_the_same_id(receiver):
    server = receiver(500, 503, 200)
    assert deliver(server.url)
    assert len({headers["webhook-id"] for _, headers, _ in server.calls}) == 1
    assert len(server.calls) == 3


@pytest.mark.parametrize(("status", "calls"), [(500, 3), (404, 3), (410, 1)])
def test_it_is_given_up_in_the_end_and_at_once_where_the_receiver_wants_no_more(receiver, status, calls):
    server = receiver(status)
    assert not deliver(server.url)
    assert len(server.calls) == calls


def test_no_redirect_is_followed(receiver):
    target = receiver(200)
    server = receiver(307, location=target.url)
    assert not deliver(server.url)
    assert target.calls == []


def test_a_name_that_resolves_to_an_address_that_is_not_public_is_not_called(receiver):
    server = receiver(200)

    async def resolve(host, port):
        return ["93.184.215.14", "127.0.0.1"]

    url = server.url.replace("127.0.0.1", "innocent.example.com")
    assert not deliver(url, private=False, resolve=resolve)
    assert server.calls == []


def test_the_address_that_was_checked_is_the_one_that_is_called(receiver):
    """A second answer of the name server, another one, would not be asked for."""
    server, asked = receiver(200), []

    async def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    assert deliver(server.url.replace("127.0.0.1", "innocent.example.com"), resolve=resolve)
    assert asked == ["innocent.example.com"]
    assert server.calls[0][1]["Host"] == f"innocent.example.com:{server.server_port}"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "2002:7f00:1::", "64:ff9b::7f00:1", "fec0::1", "::127.0.0.1", "::1.1.1.1", "64:ff9b:1::1", "5f00::1", "4000::1",
        "2001:db8::1", "2001::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(InvalidInput, match=r"webhook: .*FLEXI_WEBHOOK_PRIVATE"):
        checked_url(f"https://{host}/done", private=False)
    assert checked_url(f"http://{host}/done", private=True)


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_that_are_public(address):
    assert is_public(ip_address(address))
    assert asyncio.run(public_address("x", 443, False, _always(address))) == address


def _always(address):
    async def resolve(host, port):
        return [address]

    return resolve


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://a.example/", "http://a.example/", "https://", "https://u:p@a.example/", "https://a.example:0/",
        "https://a.example:x/", "https://[", "https://a b.example/", "https://\u00fc.example/", "https://a.example/\n",
        "javascript:alert(1)", *(f"https://{host}/" for host in NO_HOSTS),
    ],
)  # fmt: skip
def test_what_is_no_url_to_call_is_refused_when_the_job_comes(url):
    with pytest.raises(InvalidInput, match="webhook: "):
        checked_url(url, private=False)


@pytest.mark.parametrize(
    "host", ["example.com.", "a_b.example", "xn--bcher-kva.example", f"{'a' * 63}.com", "1.1.1.1", "[2606:4700::1111]"]
)
def test_what_may_be_a_name_is_taken(host):
    assert checked_url(f"https://{host}/", private=False)


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_delivery_to_what_is_no_name_fails_and_does_not_break(host):
    """Jobs of earlier versions have such URLs."""
    assert not deliver(f"http://{host}/")


def test_so_many_calls_are_made_at_once_at_most_and_those_that_wait_for_their_next_try_hold_up_none(monkeypatch):
    monkeypatch.setattr(delivery, "CALLS", 3)

    async def go():
        now, most, tries = 0, 0, 0

        async def resolve(host, port):
            nonlocal now, most, tries
            now, tries = now + 1, tries + 1
            most = max(most, now)
            for _ in range(3):
                await asyncio.sleep(0)
            now -= 1
            raise OSError("no such name")

        calls = Delivery(SECRET, private=True, resolve=resolve, pauses=(3600.0,))
        tasks = [asyncio.create_task(calls.deliver("http://a.example/", str(i), b"")) for i in range(20)]
        while tries < 20:
            await asyncio.sleep(0)
        assert most == 3
        for task in tasks:
            task.cancel()

    asyncio.run(go())


def test_names_are_looked_up_in_threads_that_make_no_image_files(monkeypatch):
    def getaddrinfo(host, port, **options):
        return [(None, None, None, "", (threading.current_thread().name, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    (thread,) = asyncio.run(resolved("a.example", 80))
    assert thread.startswith("names")


def test_certificates_are_read_once(receiver, monkeypatch):
    server, made = receiver(200), []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **options: made.append(1) or create(*args, **options))
    delivery.tls.cache_clear()
    for _ in range(3):
        assert deliver(server.url)
    assert len(made) == 1
