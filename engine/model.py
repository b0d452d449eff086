"""A loaded model: UNet, prompts, decoder and noise levels, and what is made with them. `engine.loading` loads one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from engine.condition import Condition, embedded
from engine.decoders import Decoded, Decoder, to_images, to_levels
from engine.denoiser import Denoiser
from engine.device import to_device
from engine.fresh_noise import FreshNoise
from engine.guidance import OFF
from engine.image_size import ImageSize
from engine.macs import CountedMacs, StepMacs, example
from engine.noise import NoiseLevels
from engine.notice import Notice
from engine.program import Program, compile_program
from engine.prompt_syntax import PLAIN, PromptSyntax
from engine.prompts import Prompts
from engine.slots import SlotLayout, SlotMemory, slot_bytes
from engine.source import pictured
from engine.weights import networks
from registry.errors import InvalidInput
from registry.schedule import ModelRef, Schedule, Solver, SolverName, teacher


@dataclass(frozen=True)
class Model:
    """Everything generation needs. Latents of the model's own size are (channels, height, width) = `latent_shape`.

    Where a size of images may be said, None is the model's own. fixed_size: it makes no other; which holds for models that
    denoise pixels, and that draw no texts: they were trained for one size, and their pipelines take no other either.
    notices: what its folder asks for and nobody here does. own_solver: the solver nearest to the scheduler of its folder.
    few_steps: of a distilled model (LCM, Turbo, Lightning, Hyper), the number of steps that it was taught to take; its images
    are those of `solver(teacher_solver, few_steps)` at `usual_guidance`, and many steps or guidance of two rows spoil them.
    usual_guidance: the scale where nobody says one, as `engine.usual_guidance` has it; 1 where nothing guides.
    texts_elsewhere: its text encoders are on another device than all the rest.
    """

    ref: ModelRef
    network: Denoiser
    levels: NoiseLevels
    prompts: Prompts
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]
    notices: tuple[Notice, ...] = ()
    own_solver: SolverName = "ddim"
    few_steps: int | None = None
    usual_guidance: float = OFF
    fixed_size: bool = False
    texts_elsewhere: bool = False
    earlier_fingerprint: Callable[[], str] | None = None  # as `earlier` says

    @property
    def image_size(self) -> ImageSize:
        """The model's own."""
        return ImageSize(self.latent_shape[1] * self.decoder.scale, self.latent_shape[2] * self.decoder.scale)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the UNet, as of latent consistency models: then it takes no second row."""
        return self._condition.guidance is not None

    def rows(self, guidance: float) -> int:
        """UNet rows of an image at this scale: two where it is guided away from something."""
        return 1 if guidance == OFF or self.embeds_guidance else 2

    @property
    def size_multiple(self) -> int:
        """What height and width of other sizes are multiples of: the decoder's factor times all that the network needs."""
        return self.decoder.scale * self.network.size_multiple

    def other_size(self, size: ImageSize) -> ImageSize | None:
        """A size as all that makes images takes it: None where it is the model's own.

        Raises `InvalidInput` for one that this model cannot make.
        """
        if size == self.image_size:
            return None
        if self.fixed_size:
            raise InvalidInput(f"this model makes {self.image_size} only, got {size}", param="size")
        if size.height % self.size_multiple or size.width % self.size_multiple:
            message = f"width and height must be multiples of {self.size_multiple} for this model, got {size}"
            raise InvalidInput(message, param="size")
        return size

    def other_sizes(self, sizes: Iterable[ImageSize]) -> list[ImageSize]:
        """These sizes, each once, without the model's own. Raises `InvalidInput` for one that it cannot make."""
        others = dict.fromkeys(self.other_size(size) for size in sizes)
        return [size for size in others if size is not None]

    def levels_at(self, size: ImageSize | None) -> NoiseLevels:
        """The noise levels that images of a size are walked through. Raises `InvalidInput` for a size that has none."""
        if size not in self._levels:
            _, height, width = self.latent_shape_at(size)  # of a network that has levels by size, the multiple is its patch
            self._levels[size] = self.levels.of_tokens(height * width // self.network.size_multiple**2)
        return self._levels[size]

    @cached_property
    def _levels(self) -> dict[ImageSize | None, NoiseLevels]:
        return {None: self.levels}

    def sized(self, program: Program, size: ImageSize | None) -> Program:
        """A program of images of the model's own size, for those of another. Raises what `levels_at` and `compile` raise."""
        return program.on(self.levels_at(size))

    def latent_shape_at(self, size: ImageSize | None) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images of a size."""
        if size is None:
            return self.latent_shape
        return self.latent_shape[0], size.height // self.decoder.scale, size.width // self.decoder.scale

    def size_of(self, latents: Tensor) -> ImageSize | None:
        """The size of the images of these latents (…, c, h, w)."""
        height, width = latents.shape[-2:]
        return self.other_size(ImageSize(height * self.decoder.scale, width * self.decoder.scale))

    @property
    def inpaints(self) -> bool:
        """Whether the UNet sees the picture around what it paints, as those do that were trained to inpaint."""
        return self._condition.picture is not None

    def encode(
        self,
        prompts: Sequence[str],
        guidance: float = OFF,
        size: ImageSize | None = None,
        chunks: int = 1,
        syntax: PromptSyntax = PLAIN,
    ) -> Condition:
        """Prompts to conditions, one row each. Raises `InvalidInput` for a prompt that means nothing to this model.

        guidance: the scale of models that embed it; all others look at it elsewhere. chunks: of the context.
        """
        return self._complete(self.prompts.encode(prompts, chunks, syntax), guidance, size)

    def negative(
        self, prompts: Sequence[str], size: ImageSize | None = None, chunks: int = 1, syntax: PromptSyntax = PLAIN
    ) -> Condition:
        """Negative prompts to conditions, one row each. Raises `InvalidInput` for a model without classifier-free guidance."""
        return self._complete(self.prompts.negative(prompts, chunks, syntax), OFF, size)

    def _complete(self, condition: Condition, guidance: float, size: ImageSize | None) -> Condition:
        condition = self.here(condition).at(*(size or self.image_size))
        return pictured(self, self.at_guidance(condition, guidance), size=size)

    def here(self, condition: Condition) -> Condition:
        """The condition where the network is: text encoders may be elsewhere."""
        elsewhere = any(tensor.device != self.device for tensor in condition.tensors)
        return condition.to(self.device) if elsewhere else condition

    def at_guidance(self, condition: Condition, scale: float) -> Condition:
        """The condition with this scale in it, where the UNet takes it as an input; else the condition as it is."""
        width = self._condition.guidance
        if width is None:
            return condition
        assert condition.context is not None, "a UNet that embeds the scale and attends to nothing is refused at load"
        row = to_device(embedded(scale, width.shape[1]), self.device)
        return replace(condition, guidance=row.expand(len(condition.context), -1))

    def noise(self, seed: int, size: ImageSize | None = None) -> Tensor:
        """The starting noise of one image, (c, h, w), float32, of unit variance. It depends on seed and size.

        Drawn on the CPU, so that a seed means the same on every device. Latents stay float32 whatever the UNet's dtype.
        """
        return self.noises(seed, size)(0)

    def noises(self, seed: int, size: ImageSize | None = None) -> FreshNoise:
        """All noises of one image, by place: `noise`, and those that a stochastic solver adds later."""
        if not 0 <= seed < 2**63:
            raise InvalidInput(f"must be between 0 and 2^63 - 1, got {seed}", param="seed")
        return FreshNoise(seed, self.latent_shape_at(size), self.device)

    @torch.inference_mode()
    def encode_image(self, image: Tensor) -> Tensor:
        """An image (1, 3, H, W) from −1 to 1 to its latent (c, h, w), float32. Waits for the device.

        Raises `FloatingPointError` where the encoder overflows in the widest type too.
        """
        image = to_device(image, self.device)
        while not (latent := self.decoder.encode(image)[0]).isfinite().all():
            if not self.decoder.upcast():
                raise FloatingPointError("the latent of the image is not finite")
        return latent

    def blank(self, size: ImageSize | None = None) -> Tensor:
        """The picture (1, 1 + c, h, w) of an inpainting UNet that paints everything, which is encoded once for each size."""
        if size not in self._blanks:
            nothing = torch.zeros(1, 3, *(size or self.image_size))
            latent = self.encode_image(nothing)
            self._blanks[size] = torch.cat([torch.ones_like(latent[:1]), latent])[None]
        return self._blanks[size]

    @cached_property
    def _blanks(self) -> dict[ImageSize | None, Tensor]:
        return {}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) to images (n, 3, H, W), float32 in [0, 1] on the CPU.

        Where finite latents overflow, the decoder runs in a wider type from now on. An image that is not finite in the widest
        either is NaN throughout.
        """
        images, finite = self._decode(latents, to_images)
        return images.masked_fill(~finite.view(-1, 1, 1, 1), math.nan)

    def decode_later(self, latents: Tensor) -> Decoded:
        """The first try of `decode` as levels, for those who have other things to do.

        They are there once a fence behind this call is passed; what is not finite may be by `decode_again`.
        """
        return to_levels(self.decoder, latents)

    def decode_again(self, latents: Tensor) -> Decoded:
        """As `decode`, as levels."""
        return self._decode(latents, to_levels)

    @torch.inference_mode()
    def _decode(self, latents: Tensor, how: Callable[[Decoder, Tensor], Decoded]) -> Decoded:
        """Decode and wait; what overflows, in wider and wider types."""
        images, finite = how(self.decoder, latents)
        self.network.fence().wait()
        latents_finite = latents.isfinite().flatten(1).all(dim=1).cpu()
        while (overflowed := ~finite & latents_finite).any() and self.decoder.upcast():
            again = how(self.decoder, latents[overflowed.to(latents.device)])
            self.network.fence().wait()
            images = images.index_put((overflowed,), again.images)
            finite = finite.index_put((overflowed,), again.finite)
        return Decoded(images, finite)

    @property
    def teacher_solver(self) -> SolverName:
        """Whose all-full images are the model's own: DDIM, of flow matching Euler; a distilled model was taught the steps of
        its own scheduler.
        """
        return self.own_solver if self.few_steps else self.levels.plain_solver

    def solver(self, name: SolverName, teacher_steps: int) -> Solver:
        """A solver on this model's own timestep spacing and noise levels.

        Raises `Unsupported` naming a setting of the folder's scheduler that this solver would read and cannot follow.
        """
        return self.levels.solver(name, teacher_steps)

    def compile(self, schedule: Schedule, size: ImageSize | None = None) -> Program:
        """The program of a schedule made for this model, for images of a size.

        Raises `InvalidInput` naming what does not fit.
        """
        if not self.is_called(schedule.model.fingerprint):
            message = f"the schedule was made for other weights ({schedule.model.fingerprint[:19]}…, called "
            message += f"{schedule.model.name}) than the loaded model's ({self.ref.fingerprint[:19]}…)"
            raise InvalidInput(message, param="model.fingerprint")
        if schedule.model.family != self.ref.family:
            message = f"the schedule was made for {schedule.model.family}, the loaded model is {self.ref.family}"
            raise InvalidInput(message, param="model.family")
        return compile_program(schedule, self.levels_at(size), self.network.branches)

    def teacher(self, steps: int) -> Schedule:
        """The unaccelerated model: DDIM of so many steps, of a distilled model the solver that it was made for."""
        return teacher(self.ref, self.solver(self.teacher_solver, steps))

    def is_called(self, fingerprint: str) -> bool:
        """Whether a schedule with this fingerprint is for this model: by the files that are read, or as counted earlier."""
        return fingerprint == self.ref.fingerprint or fingerprint == self.earlier

    @property
    def earlier(self) -> str:
        """The fingerprint that schedules say which were made while unread files counted too. Hashes all files at first."""
        return self.earlier_fingerprint() if self.earlier_fingerprint else self.ref.fingerprint

    @property
    def weight_bytes(self) -> int:
        """Of its networks that share a device, or would if they were loaded."""
        elsewhere = list(networks(self.prompts)) if self.texts_elsewhere else []
        there = [network for network in self._networks if network not in elsewhere]
        return sum(tensor.nbytes for network in there for tensor in (*network.parameters(), *network.buffers()))

    def drop_weights(self) -> None:
        """Give their memory back: from now on the model can tell all of itself, and make nothing."""
        for network in self._networks:
            nn.Module.to(network, "meta")

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.network.module, *networks(self.prompts), *networks(self.decoder)]

    def slots(self, capacity: int, others: Iterable[ImageSize] = (), chunks: int = 1) -> SlotMemory:
        """Memory for `capacity` UNet rows of the model's own size in flight, which those of `others` share, and those with
        contexts of up to `chunks` chunks.
        """
        layouts = {size: self._slot_layout(size) for size in (None, *others)}
        return SlotMemory(layouts, self._condition, capacity, self.device, self.dtype, self.network.channels_last, chunks)

    def slot_bytes(self, size: ImageSize | None = None, chunks: int = 1) -> int:
        """Of the memory for one row of a size, with so many chunks of context, whatever branch its schedule uses."""
        return max(slot_bytes(self._slot_layout(size), self._condition.lengthened(chunks), self.dtype).values())

    def _slot_layout(self, size: ImageSize | None) -> SlotLayout:
        return SlotLayout(self.latent_shape_at(size), self.macs_at(size).features)

    @cached_property
    def _condition(self) -> Condition:
        """One row of the kind that the network takes, without memory."""
        return example(self.network.config, self.prompts.tokens, self.latent_shape)

    @property
    def macs(self) -> StepMacs:
        """MACs of one UNet row for each kind of step, at this model's own size."""
        return self.macs_at(None)

    def macs_at(self, size: ImageSize | None, chunks: int = 1) -> StepMacs:
        """MACs of one UNet row for each kind of step, at a size and with so many chunks of context."""
        return self._macs.at(self.latent_shape_at(size), chunks)

    @cached_property
    def _macs(self) -> CountedMacs:
        return CountedMacs(self.network.config, self.prompts.tokens)
