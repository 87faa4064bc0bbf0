"""`uv run invoke cloud.cost`: what a month costs, about, with every assumption in sight and each of them a key.

Prices are list prices of a mid-priced region in US dollars, written down in November 2026 and not asked for anywhere: give yours.
"""

from dataclasses import asdict, dataclass
from typing import Any

from pigeonhole.command import command, say, with_help
from pigeonhole.options import read_options, setting


@dataclass
class CostConfig:
    serve_hours: float = setting(730.0, "hours a month in which an instance of serve is up (CPU always allocated)", ge=0)
    serve_cpus: float = setting(1.5, "cores of an instance, the metrics sidecar included", ge=0)
    serve_memory_gib: float = setting(1.25, "memory of an instance, the sidecar included", ge=0)
    drift_hours: float = setting(195.0, "hours a month in which drift is up: 730 runs, each with 15 minutes after it", ge=0)
    drift_cpus: float = setting(1.5, "cores of an instance, the metrics sidecar included", ge=0)
    drift_memory_gib: float = setting(2.25, "memory of an instance, the sidecar included", ge=0)
    frontend_hours: float = setting(60.0, "hours a month in which the page is looked at", ge=0)
    frontend_cpus: float = setting(1.0, "cores of an instance", ge=0)
    frontend_memory_gib: float = setting(1.0, "memory of an instance", ge=0)
    stored_gb: float = setting(20.0, "bundles, prediction log, reports and data in the bucket", ge=0)
    images_gb: float = setting(30.0, "images after clean-up", ge=0)
    builds: float = setting(20.0, "builds of all images a month", ge=0)
    build_minutes: float = setting(15.0, "minutes of such a build on 8 cores", ge=0)
    training_hours: float = setting(4.0, "hours of training on n1-standard-8", ge=0)
    gpu_hours: float = setting(0.0, "of these with one T4", ge=0)
    samples_million: float = setting(15.0, "metric samples a month: 170 series every 30 s for one instance of serve", ge=0)
    usd_cpu_hour: float = setting(0.0648, "one core of Cloud Run for an hour, always allocated", ge=0)
    usd_gib_hour: float = setting(0.0072, "one GiB of Cloud Run for an hour, always allocated", ge=0)
    usd_gb_month: float = setting(0.023, "one GB in the bucket for a month", ge=0)
    usd_image_gb_month: float = setting(0.10, "one GB of images for a month", ge=0)
    usd_build_minute: float = setting(0.016, "a minute of E2_HIGHCPU_8", ge=0)
    usd_training_hour: float = setting(0.50, "an hour of n1-standard-8 in custom training", ge=0)
    usd_t4_hour: float = setting(0.40, "an hour of a T4", ge=0)
    usd_samples_million: float = setting(0.06, "a million samples in managed Prometheus", ge=0)


@with_help("usage: python -m pigeonhole.cloud.cost [key=value …]", CostConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    config = read_options(CostConfig, arguments)
    parts = estimate(config)
    for name, usd in parts.items():
        say(f"{name:<12} {usd:10.2f} USD")
    say(f"{'a month':<12} {sum(parts.values()):10.2f} USD, if the assumptions hold (--help names them)")
    return {"usd_a_month": round(sum(parts.values()), 2), "parts": parts, "assumptions": asdict(config)}


def estimate(config: CostConfig) -> dict[str, float]:
    def cloud_run(hours: float, cpus: float, gib: float) -> float:
        return hours * (cpus * config.usd_cpu_hour + gib * config.usd_gib_hour)

    parts = {
        "serve": cloud_run(config.serve_hours, config.serve_cpus, config.serve_memory_gib),
        "drift": cloud_run(config.drift_hours, config.drift_cpus, config.drift_memory_gib),
        "frontend": cloud_run(config.frontend_hours, config.frontend_cpus, config.frontend_memory_gib),
        "bucket": config.stored_gb * config.usd_gb_month,
        "images": config.images_gb * config.usd_image_gb_month,
        "builds": config.builds * config.build_minutes * config.usd_build_minute,
        "training": config.training_hours * config.usd_training_hour + config.gpu_hours * config.usd_t4_hour,
        "metrics": config.samples_million * config.usd_samples_million,
    }
    return {name: round(usd, 2) for name, usd in parts.items()}


main = command(run)

if __name__ == "__main__":
    main()
