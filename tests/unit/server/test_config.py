"""Settings: what is wrong stops the start and says which variable and which limit."""

from __future__ import annotations

import re

import pytest

from registry.errors import InvalidInput
from server import config


@pytest.fixture(autouse=True)
def only_a_model(monkeypatch, tmp_path):
    for name in [name for name in config.os.environ if name.startswith("FLEXI_")]:
        monkeypatch.delenv(name)
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setenv("FLEXI_MODEL", str(tmp_path))


def test_defaults():
    settings = config.load()
    assert (settings.default_tier, settings.max_images, settings.dtype) == ("balanced", 4, "float32")


def test_values_are_read_once_and_frozen(monkeypatch):
    monkeypatch.setenv("FLEXI_MAX_IMAGES", "7")
    settings = config.load()
    assert settings.max_images == 7
    with pytest.raises(ValueError, match="frozen"):
        settings.max_images = 8


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("FLEXI_MAX_IMAGES", "0", "greater than or equal to 1"),
        ("FLEXI_MAX_IMAGES", "many", "integer"),
        ("FLEXI_WORKERS", "0", "greater than or equal to 1"),
        ("FLEXI_WORKERS", "65", "less than or equal to 64"),
        ("FLEXI_WORKER_SOCKETS", "/nowhere", "/nowhere is no folder that this user can write to"),
        ("FLEXI_MAX_WAVE_ROWS", "1", "greater than or equal to 2"),
        ("FLEXI_WATCH_SECONDS", "0", "greater than or equal to 0.1"),
        ("FLEXI_WATCH_SECONDS", "nan", "less than or equal to 3600"),
        ("FLEXI_DTYPE", "int8", "float32"),
        ("FLEXI_DEVICE", "tpu", "give cpu, cuda or cuda:1, got 'tpu'"),
        ("FLEXI_TEXT_DEVICE", "tpu", "give cpu, cuda or cuda:1, got 'tpu'"),
        ("FLEXI_DEFAULT_TIER", "Best!", "give 1 to 64 of a-z"),
        ("FLEXI_DEFAULT_GUIDANCE", "-1", "greater than or equal to 0"),
        ("FLEXI_REGISTRY", "http://elsewhere", "s3://bucket/prefix"),
        ("FLEXI_REGISTRY", "s3://", "s3://bucket/prefix"),
        ("FLEXI_MODEL", "/nowhere", "model_index.json"),
        ("FLEXI_LORAS", "/nowhere", "/nowhere is no folder"),
        ("FLEXI_LORAS_MIB", "0", "greater than or equal to 1"),
        ("FLEXI_DRAIN_SECONDS", "-1", "greater than or equal to 0"),
        ("FLEXI_ALLOW_ANONYMOUS", "perhaps", "boolean"),
        ("FLEXI_MARKING_TIMESTAMP_URL", "timestamp.example", "a URL, as in http"),
        ("FLEXI_MAX_IMAGE", "2", "no such setting"),
        ("FLEXI_CHANNELS_LAST", "true", "is part of FLEXI_COMPILE now"),
        ("FLEXI_COMPILE", "perhaps", "'auto', 'on' or 'off'"),
        ("FLEXI_MODEL_ALIASES", "dall-e-3,my model", "letters, digits, .*, got 'my model'"),
        ("FLEXI_MODEL_ALIASES", "dall-e-3," + "x" * 129, "at most 128 letters"),
        ("FLEXI_MODEL_ALIASES", ",".join(map(str, range(33))), "at most 32 items"),
        ("FLEXI_CORS_ORIGINS", "https://a.example,app.example.com", "scheme, a host.*, got 'app.example.com'"),
        ("FLEXI_CORS_ORIGINS", "https://a.example/", "scheme, a host.*, got 'https://a.example/'"),
        ("FLEXI_CORS_ORIGINS", "https://a.example:port", "got 'https://a.example:port'"),
        ("FLEXI_CORS_ORIGINS", "https://a.example:70000", "got 'https://a.example:70000'"),
        ("FLEXI_CORS_ORIGINS", "https://me@a.example", "scheme, a host"),
        ("FLEXI_CORS_ORIGINS", "null", "scheme, a host"),
        ("FLEXI_CORS_ORIGINS", "https://*.example", "scheme, a host"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch, name, value, limit):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=limit) as refused:
        config.load()
    assert refused.value.message.startswith(f"{name}: ")
    assert refused.value.param == name


def test_keys_and_everybody_exclude_each_other(monkeypatch):
    monkeypatch.setenv("FLEXI_API_KEYS", "keys.json")
    monkeypatch.setenv("FLEXI_ALLOW_ANONYMOUS", "true")
    with pytest.raises(InvalidInput, match=r"^FLEXI_ALLOW_ANONYMOUS: with api_keys every request needs a key"):
        config.load()


@pytest.mark.parametrize(("given", "missing"), [("CERTIFICATE", "KEY"), ("KEY", "CERTIFICATE")])
def test_a_certificate_to_mark_with_and_its_key_need_each_other(monkeypatch, given, missing):
    monkeypatch.setenv(f"FLEXI_MARKING_{given}", "some.pem")
    with pytest.raises(InvalidInput, match=rf"^FLEXI_MARKING_{missing}: with FLEXI_MARKING_{given} it is needed"):
        config.load()


def test_all_faults_are_said_at_once(monkeypatch):
    monkeypatch.setenv("FLEXI_TYPO", "1")
    monkeypatch.setenv("FLEXI_MAX_IMAGES", "0")
    with pytest.raises(InvalidInput, match=r"FLEXI_TYPO: .*; FLEXI_MAX_IMAGES: "):
        config.load()


@pytest.mark.parametrize("name", ["FLEXI_REGISTRY", "FLEXI_S3_ENDPOINT"])
@pytest.mark.parametrize("url", ["s3://key:hunter2@bucket/prefix", "http://user:hunter2@host", "https://host/?token=hunter2"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(monkeypatch, name, url):
    monkeypatch.setenv(name, url)
    with pytest.raises(InvalidInput, match=name) as refused:
        config.load()
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize("secret", ["hunter2", "whsec_hunter2", "whsec_" + "aHVudGVyMg=="])
def test_a_webhook_secret_that_is_none_is_refused_and_not_repeated(monkeypatch, secret):
    monkeypatch.setenv("FLEXI_WEBHOOK_SECRET", secret)
    with pytest.raises(InvalidInput, match="FLEXI_WEBHOOK_SECRET: give whsec_ and 24 to 64") as refused:
        config.load()
    assert "hunter2" not in refused.value.message
    assert "aHVudGVyMg" not in refused.value.message


def test_a_webhook_secret_is_shown_by_no_print_of_the_settings(monkeypatch):
    monkeypatch.setenv("FLEXI_WEBHOOK_SECRET", f"whsec_{'QUJD' * 10}")
    settings = config.load()
    assert "QUJD" not in repr(settings)
    assert settings.webhook_secret.get_secret_value() == f"whsec_{'QUJD' * 10}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example.com/hunter2", "FLEXI_EVENT_WEBHOOK: give an https URL"),
        ("https://10.0.0.1/hunter2", "FLEXI_EVENT_WEBHOOK: it leads to .* FLEXI_EVENT_WEBHOOK_PRIVATE allows those"),
        ("https://hooks.example.com/hunter2", "FLEXI_EVENT_WEBHOOK_SECRET: calls are signed: give whsec_"),
    ],
)
def test_operators_webhook_must_be_public_and_signed_and_is_not_repeated(monkeypatch, url, said):
    monkeypatch.setenv("FLEXI_EVENT_WEBHOOK", url)
    with pytest.raises(InvalidInput, match=said) as refused:
        config.load()
    assert "hunter2" not in refused.value.message
    monkeypatch.setenv("FLEXI_EVENT_WEBHOOK_SECRET", f"whsec_{'QUJD' * 10}")
    monkeypatch.setenv("FLEXI_EVENT_WEBHOOK_PRIVATE", "true")
    assert "hunter2" not in repr(config.load())


@pytest.mark.parametrize(
    "url", ["images.example.com", "ftp://a.example", "https://", "https://a.example?x=1", "https://me@a.example"]
)
def test_a_public_url_that_is_none_is_refused(monkeypatch, url):
    monkeypatch.setenv("FLEXI_PUBLIC_URL", url)
    with pytest.raises(InvalidInput, match="FLEXI_PUBLIC_URL: a URL without user and query"):
        config.load()


def test_a_public_url_loses_its_last_slash(monkeypatch):
    monkeypatch.setenv("FLEXI_PUBLIC_URL", "https://a.example/flexi/")
    assert config.load().public_url == "https://a.example/flexi"


def test_trusted_keys_must_be_some(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXI_TRUSTED_KEYS", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"FLEXI_TRUSTED_KEYS: there is no \*\.pem file"):
        config.load()


@pytest.mark.parametrize(
    ("value", "device", "compiled"),
    [
        (None, "cuda:1", True),
        (None, "cpu", False),
        ("auto", "cuda", True),
        ("on", "cpu", True),
        ("true", "cpu", True),
        ("1", "cpu", True),
        ("off", "cuda", False),
        ("False", "cuda", False),
        ("0", "cuda", False),
    ],
)
def test_a_model_is_compiled_where_that_is_set_or_on_cuda(monkeypatch, value, device, compiled):
    monkeypatch.setenv("FLEXI_DEVICE", device)
    if value is not None:
        monkeypatch.setenv("FLEXI_COMPILE", value)
    assert config.load().compiled == compiled


def test_every_setting_is_described():
    assert all(field.description for field in config.Settings.model_fields.values())


def test_lists_are_written_with_commas(monkeypatch):
    monkeypatch.setenv("FLEXI_MODEL_ALIASES", "dall-e-3, gpt-image-1,openai/dall-e-2,")
    assert config.load().model_aliases == ("dall-e-3", "gpt-image-1", "openai/dall-e-2")
    monkeypatch.setenv("FLEXI_MODEL_ALIASES", "")
    assert config.load().model_aliases == ()


def test_origins_are_kept_as_browsers_write_them(monkeypatch):
    written = "https://App.example.com:443,http://localhost:5173, http://[::1]:80 ,chrome-extension://abc,*"
    monkeypatch.setenv("FLEXI_CORS_ORIGINS", written)
    kept = ("https://app.example.com", "http://localhost:5173", "http://[::1]", "chrome-extension://abc", "*")
    assert config.load().cors_origins == kept


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders that look like models' from afar, and FLEXI_MODEL says none."""
    monkeypatch.delenv("FLEXI_MODEL")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    return tmp_path


def test_several_models_are_folders_with_names_or_without_and_the_first_is_the_default(folders, monkeypatch):
    monkeypatch.setenv("FLEXI_MODELS", f"{folders}/one, b={folders}/two,c={folders}/missing")
    settings = config.load()
    assert settings.models == ((None, folders / "one"), ("b", folders / "two"), ("c", folders / "missing"))
    assert (settings.model, settings.model_name) == (folders / "one", None)
    listed = folders / "models.txt"
    listed.write_text(f"# ours\na={folders}/two  # the default\n\n{folders}/one\n")
    monkeypatch.setenv("FLEXI_MODELS", str(listed))
    settings = config.load()
    assert settings.models == (("a", folders / "two"), (None, folders / "one"))
    assert (settings.model, settings.model_name) == (folders / "two", "a")


@pytest.mark.parametrize(
    ("models", "other", "said"),
    [
        ("{0}/one,{0}/one", {}, "a folder is there twice"),
        ("Big Name={0}/one", {}, "cannot name a model"),
        ("{0}/missing,{0}/one", {}, "FLEXI_MODEL: {0}/missing is not a diffusers pipeline folder"),
        ("{0}/one", {"FLEXI_MODEL": "{0}/two"}, "FLEXI_MODEL and FLEXI_MODEL_NAME say nothing"),
        (",".join(f"m{i}={{0}}/{i}" for i in range(17)), {}, "at most 16"),
    ],
)
def test_models_that_cannot_be_meant_stop_the_start(folders, monkeypatch, models, other, said):
    for name, value in {"FLEXI_MODELS": models, **other}.items():
        monkeypatch.setenv(name, value.format(folders))
    with pytest.raises(InvalidInput, match=re.escape(said.format(folders))):
        config.load()
