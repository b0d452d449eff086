"""Whether a folder's components fit each other, seen from their configurations before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.config import CLASSES, attends, complete, context_width, defaults, is_number, reason, refuse_unknown
from engine.folder import Folder
from engine.text_layouts import CLIP, FLUX, PIXART, t5_tokens, text_layout
from registry.errors import Unsupported

AUTOENCODERS = ("AsymmetricAutoencoderKL", "AutoencoderKL", "AutoencoderTiny", "VQModel")
COMPONENTS: dict[str, set[str | None]] = {
    "unet": {*CLASSES},
    "vae": {*AUTOENCODERS, None},
    "vqvae": {*AUTOENCODERS, None},
    **{name: {*known} for name, known in CLIP.encoders.items()},
}
NETWORKS = ("unet", "transformer")  # of which a folder has one


def known_config(files: Folder, component: str, classes: Sequence[str]) -> dict[str, Any]:
    """The configuration of a folder's network as it is written, and its class, one of these, when this version knows every
    other component's.

    Raises `Unsupported` naming the component that no family has. Needs no torch.
    """
    known: dict[str, set[str | None]] = {
        component: {*classes},
        **{name: known for name, known in COMPONENTS.items() if name not in NETWORKS},
        **{name: {*known} for name, known in text_layout(files).encoders.items()},
    }
    found = {name: files.component(name) for name in known}
    for name, allowed in known.items():
        if found[name] not in allowed:
            wanted = " or ".join(sorted(filter(None, allowed))) or "none there"
            raise Unsupported(f"{name} is {found[name]}, this version runs {wanted}", param="model")
    return {"_class_name": found[component], **files.config(component)}


def refuse_two_classes(files: Folder, component: str, config: dict[str, Any]) -> None:
    """Raises `Unsupported` where a network's own configuration names another class than the folder's index."""
    said = files.component(component)
    if config["_class_name"] != said:
        message = f"{component} is {said} in model_index.json and {config['_class_name']} in its own config.json"
        raise Unsupported(message, param="model")


def known_unet(files: Folder) -> dict[str, Any]:
    """The UNet's configuration as it is written, and its class, when this version knows every component's and its settings.

    Raises `Unsupported` naming the component that no family has, or the setting of the UNet. Needs no torch.
    """
    config = known_config(files, "unet", CLASSES)
    refuse_unknown(config)
    refuse_two_classes(files, "unet", config)
    return config


def fitting_unet(files: Folder) -> dict[str, Any]:
    """The UNet's complete configuration, when the other components fit it.

    Raises what `known_unet` raises, and `Unsupported` naming the component that this one lacks, or that does not fit the UNet:
    such a model would load, and fail at every image.
    """
    config = complete(known_unet(files))
    channels, made = config["in_channels"], config["out_channels"]
    if channels == 2 * made + 1 and files.decoder and files.component("text_encoder"):
        channels = made  # an inpainting UNet sees a mask and the latent of the picture around it beside its latents
    if channels != made:
        message = f"{channels} in the unet config is not out_channels {made}: editing an image by instruction and "
        raise Unsupported(message + "a learned variance are not supported", param="in_channels")
    refuse_latents(files, "unet", channels)
    _refuse_conditions(files, config)
    return config


def refuse_width(config: dict[str, Any], width: int, of: str) -> None:
    """Raises `Unsupported` where the UNet attends to a context of another width than what makes it."""
    wanted = context_width(config)
    if wanted not in (None, width):
        message = f"is {wanted} in the unet config, but {of} makes a context as wide as {width}"
        raise Unsupported(message, param="cross_attention_dim")


def refuse_latents(files: Folder, network: str, channels: int) -> None:
    """Raises `Unsupported` unless the decoder takes latents of so many channels, which are the network's, and spoils none."""
    component = files.decoder
    if component is None:
        if channels not in (1, 3):
            what = "UNet" if network == "unet" else network
            raise Unsupported(f"vae is missing, and the {what}'s channels are no image's", param="model")
        return
    decoder = _decoder(files, component)
    if decoder.get("out_channels") not in (1, 3):
        raise Unsupported(f"{decoder.get('out_channels')!r} in the {component} config is no image's", param="out_channels")
    latent = _latent_channels(decoder)
    if channels != latent:
        message = f"is {channels} in the {network} config, but latents of {component} have {latent} channels"
        raise Unsupported(message, param="in_channels")
    _refuse_scales(files)


def _refuse_scales(files: Folder) -> None:
    """Raises `Unsupported` for numbers that latents are multiplied with before they are decoded, and that spoil every image."""
    if files.decoder is None:
        return
    decoder = _decoder(files, files.decoder)
    if not _is_factor(decoder["scaling_factor"]):
        message = f"must be a finite number other than 0 in the {files.decoder} config, got {decoder['scaling_factor']!r}"
        raise Unsupported(message, param="scaling_factor")
    if not (decoder.get("shift_factor") is None or is_number(decoder["shift_factor"])):
        message = f"must be a finite number or null in the {files.decoder} config, got {decoder['shift_factor']!r}"
        raise Unsupported(message, param="shift_factor")
    channels = _latent_channels(decoder)
    for field, fits in (("latents_mean", is_number), ("latents_std", _is_factor)):
        values = decoder.get(field)
        if values is not None and not (isinstance(values, list) and len(values) == channels and all(map(fits, values))):
            message = f"must be {channels} finite numbers in the {files.decoder} config, one for each channel, got {values!r}"
            raise Unsupported(message, param=field)


def _decoder(files: Folder, component: str) -> dict[str, Any]:
    """The complete configuration of an autoencoder."""
    return {**defaults(str(files.component(component))), **files.config(component)}


def _latent_channels(decoder: dict[str, Any]) -> Any:
    return decoder.get("vq_embed_dim") or decoder["latent_channels"]


def _is_factor(value: object) -> bool:
    return is_number(value) and value != 0


def _refuse_conditions(files: Folder, config: dict[str, Any]) -> None:
    """Raises `Unsupported` where the UNet wants conditions that no component makes, or does not take those that one makes."""
    text, second, table = (files.component(name) for name in ("text_encoder", "text_encoder_2", "class_embedder"))
    if second and not text:
        raise Unsupported("text_encoder is missing beside text_encoder_2 (a refiner?)", param="model")
    if attends(config) and not (text or table):
        raise Unsupported("text_encoder is missing (or class_embedder), but the UNet attends to a context", param="model")
    if config.get("time_cond_proj_dim") is not None and not attends(config):
        message = f"{config['time_cond_proj_dim']} in the unet config is not supported in a UNet that attends to nothing"
        raise Unsupported(message, param="time_cond_proj_dim")
    if config.get("num_class_embeds") is not None and (text or table):
        message = f"in the unet config beside {'text_encoder' if text else 'class_embedder'} (an upscaler?)"
        raise Unsupported(f"{message} is not supported", param="num_class_embeds")
    added = config.get("addition_embed_type") is not None
    if added and not second:
        message = "text_encoder_2 is missing, which unet config addition_embed_type text_time needs"
        raise Unsupported(message, param="model")
    if not (text and attends(config)):
        return
    encoders = {name: _encoder(files, name) for name in ("text_encoder", "text_encoder_2") if files.component(name)}
    refuse_width(config, sum(encoder.hidden_size for encoder in encoders.values()), " and ".join(encoders))
    if added:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        made = encoders["text_encoder_2"].projection_dim
        if pooled != made:
            field = "projection_class_embeddings_input_dim"
            message = f"leaves {pooled} for the pooled text in the unet config, but projection_dim of text_encoder_2 is {made}"
            raise Unsupported(message, param=field)


def refuse_texts(files: Folder, config: dict[str, Any]) -> None:
    """Raises `Unsupported` where a transformer takes texts of another width than the folder's text encoders make.

    config: the transformer's complete one.
    """
    layout = text_layout(files)
    t5_tokens(files)
    t5: Any = _encoder(files, layout.t5).d_model if files.component(layout.t5) else None
    if layout is PIXART:
        field = "cross_attention_dim" if config["caption_channels"] is None else "caption_channels"
        _refuse_other(config, field, t5, f"{layout.t5} makes a context as wide as")
        return
    if t5 is not None:
        _refuse_other(config, "joint_attention_dim", t5, f"{layout.t5} makes a context as wide as")
    clips = [_encoder(files, name) for name in layout.encoders if files.component(name) and name != layout.t5]
    if layout is FLUX:
        _refuse_other(config, "pooled_projection_dim", clips[0].hidden_size, "text_encoder makes a pooled text as wide as")
        return
    both = "text_encoder and text_encoder_2 together"
    pooled = sum(clip.projection_dim for clip in clips)
    _refuse_other(config, "pooled_projection_dim", pooled, f"{both} make a pooled text as wide as")
    widths = sum(clip.hidden_size for clip in clips)
    if widths > config["joint_attention_dim"]:
        message = f"is {config['joint_attention_dim']} in the transformer config, but {both} make a context {widths} wide"
        raise Unsupported(message, param="joint_attention_dim")


def _refuse_other(config: dict[str, Any], field: str, made: int, what: str) -> None:
    if config[field] != made:
        raise Unsupported(f"is {config[field]} in the transformer config, but {what} {made}", param=field)


def _encoder(files: Folder, name: str) -> Any:
    """A text encoder's configuration, defaults included."""
    from transformers import CLIPTextConfig, T5Config

    if files.config(name).get("use_attention_mask"):  # says more plainly than transformers what is missing or no JSON
        raise Unsupported(f"is true in the {name} config: attention masks are not supported", param="use_attention_mask")
    try:
        kind = T5Config if name == text_layout(files).t5 else CLIPTextConfig
        return kind.from_pretrained(files.path(name))
    except Exception as error:  # transformers' own kinds for values of a wrong type
        raise Unsupported(f"the configuration of {name} is wrong: {reason(error)}", param="model") from error
