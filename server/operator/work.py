"""What the server does now, from the metrics that it has for Prometheus: counts since the processes began."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.samples import Sample

from registry.schedule import Kind
from server.models.served_model import ServedModel
from server.operator.views import LatencyHistogram, ModelWork, ServerWork, TierWork, WaveWork
from server.telemetry import exposition

KINDS: tuple[Kind, ...] = ("full", "partial", "null")
Labels = Mapping[str, str]


class Samples:
    """Samples of the server's metrics, added up over the labels that nobody asks for."""

    def __init__(self, samples: Iterable[Sample], default_model: str) -> None:
        """default_model: of which samples without a model are."""
        self._by_name = defaultdict[str, list[tuple[Labels, float]]](list)
        for sample in samples:
            self._by_name[sample.name].append(({"model": default_model} | sample.labels, sample.value))

    def total(self, name: str, **labels: str) -> float:
        """The sum of what has these labels."""
        return sum(value for own, value in self._by_name[name] if _has(own, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums by one label's values."""
        sums = defaultdict[str, float](float)
        for own, value in self._by_name[name]:
            if label in own and _has(own, labels):
                sums[own[label]] += value
        return dict(sorted(sums.items()))

    def histogram(self, name: str, **labels: str) -> LatencyHistogram:
        """Cumulative counts by upper bound."""
        bounds = self.by("le", f"{name}_bucket", **labels)
        finite = sorted((float(bound), count) for bound, count in bounds.items() if bound != "+Inf")
        return LatencyHistogram(
            count=self.total(f"{name}_count", **labels),
            sum=self.total(f"{name}_sum", **labels),
            bounds=[bound for bound, _ in finite],
            counts=[count for _, count in finite],
        )


def work(models: Iterable[ServedModel], processes: int, clock: Callable[[], float] = time.time) -> ServerWork:
    """Of all worker processes, as `/metrics` has it; a model's state is that of this one."""
    models = list(models)
    found = (sample for metric in exposition.present() for sample in metric.samples)
    samples = Samples(found, models[0].name)
    return ServerWork(
        time=clock(),
        of="all processes" if exposition.of_all_processes() else "this process",
        processes=processes,
        queue_seconds=samples.total("flexi_queue_seconds"),
        background_seconds=samples.total("flexi_background_seconds"),
        refused=samples.by("reason", "flexi_rejected_total"),
        jobs=samples.by("state", "flexi_jobs"),
        models=[_model(samples, served) for served in models],
    )


def _model(samples: Samples, served: ServedModel) -> ModelWork:
    model = served.name
    kinds = samples.by("kind", "flexi_wave_rows_count", model=model)
    tiers = samples.by("tier", "flexi_request_seconds_count", model=model) | samples.by(
        "tier", "flexi_image_macs_count", model=model
    )
    return ModelWork(
        model=model,
        state=served.state,
        fault=served.fault or None,
        loaded_in=samples.total("flexi_model_loaded", model=model),
        memory_bytes=samples.total("flexi_model_bytes", model=model),
        queue_images=samples.total("flexi_queue_images", model=model),
        inflight_images=samples.total("flexi_inflight_images", model=model),
        waves=[
            WaveWork(
                kind=kind,
                waves=waves,
                rows=samples.total("flexi_wave_rows_sum", model=model, kind=kind),
                seconds=samples.total("flexi_wave_seconds_sum", model=model, kind=kind),
            )
            for kind, waves in kinds.items()
        ],
        tiers=[_tier(samples, model, tier) for tier in sorted(tiers)],
    )


def _tier(samples: Samples, model: str, tier: str) -> TierWork:
    own = {"model": model, "tier": tier}
    return TierWork(
        tier=tier,
        requests=samples.by("outcome", "flexi_request_seconds_count", **own),
        latency=samples.histogram("flexi_request_seconds", outcome="ok", **own),
        images=samples.total("flexi_images_total", outcome="ok", **own),
        macs=samples.total("flexi_image_macs_sum", **own),
        teacher_macs=samples.total("flexi_teacher_macs_total", **own),
        steps={kind: samples.total("flexi_finished_steps_total", kind=kind, **own) for kind in KINDS},
    )


def _has(own: Labels, wanted: Labels) -> bool:
    return all(own.get(label) == value for label, value in wanted.items())
