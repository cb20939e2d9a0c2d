"""The deployments: one table, and how it is put on a Prefect server.

``prefect.yaml`` says the same for teams that deploy with Prefect's own command; a test compares the two.
Entrypoints are module paths, so that an installed package works as a checkout does, from any folder.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vitpipe.records import Json

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.events.schemas.automations import AutomationCore
    from prefect.flows import Flow

POOL = "vitpipe"
"""Name of the work pool; its worker starts a process a run."""

ZOMBIE_AUTOMATION = "vitpipe: crash runs without a sign of life"

_CONFIG_PARAMETER = "config"
_HEARTBEAT = "prefect.flow-run.heartbeat"
# What a run may do instead of giving a sign of life: end, or wait for a retry, an approval or a slot.
_LEAVES_RUNNING = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry", "Scheduled")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One row of the table."""

    name: str
    entrypoint: str
    """Module path of the flow."""
    description: str
    tags: tuple[str, ...] = ()
    cron: str | None = None
    """Schedule, in the time zone that ``vitpipe up`` is given."""
    concurrency_limit: int | None = None
    """Runs at a time; a run beyond it is cancelled, not queued."""


def _stage(name: str, description: str) -> Deployment:
    return Deployment(name, f"flows.stages.{name}", description, tags=("vitpipe", "stage"))


DEPLOYMENTS = (
    Deployment(
        "pipeline",
        "flows.pipeline.pipeline",
        "From raw files to a judged and registered model: every stage, each doing only what is new.",
        tags=("vitpipe",),
    ),
    _stage("ingest", "Find the sources and read their headers; what cannot be used is quarantined with its reason."),
    _stage("tile", "Cut the sources that are new into tiles."),
    _stage("train", "Fine-tune the Vision Transformer on the labelled tiles; resumes where it was stopped."),
    _stage("evaluate", "Judge the trained model on the locked test split, with intervals and subgroups."),
    _stage("register", "Keep the judged model in the MLflow registry, and let the gate decide about the champion."),
    Deployment(
        "nightly",
        "flows.retrain.retrain",
        "Look for new data every night, train a challenger on it, and promote it where the gate allows. One at a time.",
        tags=("vitpipe", "retrain"),
        cron="0 2 * * *",
        concurrency_limit=1,
    ),
    Deployment(
        "predict",
        "flows.predict.predict",
        "Apply a registered model to raw files.",
        tags=("vitpipe", "predict"),
    ),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What the deploying child is asked for."""

    deployments: tuple[Deployment, ...]
    config: Mapping[str, Json] | None
    """The pipeline with absolute paths, as default of every flow that takes a `config`; None: asked in the form."""
    timezone: str
    zombie_seconds: float
    """A run without a sign of life for so long is crashed."""

    def to_json(self) -> str:
        """Give the text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read what :meth:`to_json` gave."""
        values = json.loads(text)
        rows = tuple(Deployment(**row | {"tags": tuple(row["tags"])}) for row in values.pop("deployments"))
        return cls(deployments=rows, **values)


async def deploy(request: Request) -> list[str]:
    """Make the work pool, the deployments and the zombie automation, or bring them up to date.

    Returns:
        Names as ``flow/deployment``, in the order of the table.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        await _make_pool(client)
        names = [await _apply(deployment, request) for deployment in request.deployments]
        await _install_zombie_automation(client, request.zombie_seconds)
        await _crash_the_forgotten(client, request.zombie_seconds)
    return names


async def _make_pool(client: PrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    pool = WorkPoolCreate(
        name=POOL, type="process", description="Runs of vitpipe, a process each.", base_job_template=template
    )
    try:
        await client.create_work_pool(pool)
    except ObjectAlreadyExists:
        return


async def _apply(deployment: Deployment, request: Request) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import load_flow_from_entrypoint
    from prefect.schedules import Schedule
    from prefect.types.entrypoint import EntrypointType

    flow: Flow[..., object] = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
    takes_config = _CONFIG_PARAMETER in flow.parameters.properties
    # A schedule without the parameter that it needs would fail every night.
    active = request.config is not None or not takes_config
    cron = deployment.cron
    limit = deployment.concurrency_limit
    made = await flow.ato_deployment(
        name=deployment.name,
        schedules=[Schedule(cron=cron, timezone=request.timezone, active=active)] if cron else None,
        concurrency_limit=(
            ConcurrencyLimitConfig(limit=limit, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
            if limit
            else None
        ),
        parameters={_CONFIG_PARAMETER: dict(request.config)} if takes_config and request.config is not None else {},
        description=deployment.description,
        tags=list(deployment.tags),
        work_pool_name=POOL,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    await made.aapply()
    return f"{flow.name}/{deployment.name}"


async def _install_zombie_automation(client: PrefectClient, zombie_seconds: float) -> None:
    """Let the server crash a run whose process is gone, together with the worker that would have said so."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    automation = AutomationCore(
        name=ZOMBIE_AUTOMATION,
        description="A running flow says that it lives; one that no longer does was killed together with its worker.",
        enabled=True,
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _LEAVES_RUNNING)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=zombie_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"No sign of life for {zombie_seconds:g} s: the process and its worker were killed. "
                "Run it again: it goes on where it was.",
            )
        ],
    )
    existing = await client.read_automations_by_name(ZOMBIE_AUTOMATION)
    for surplus in existing[1:]:
        await client.delete_automation(surplus.id)
    if not existing:
        await client.create_automation(automation)
    elif _essence(existing[0]) != _essence(automation):
        # Only then: a change makes the server forget the runs that it watches.
        await client.update_automation(existing[0].id, automation)


def _essence(automation: AutomationCore) -> str:
    """Give what an automation does, without what the server adds to it."""
    names = {"name", "description", "enabled", "trigger", "actions"}
    values = automation.model_dump(mode="json", include=names)
    values["trigger"].pop("id", None)
    return json.dumps({**values, "trigger": _sorted_lists(values["trigger"])}, sort_keys=True)


def _sorted_lists(trigger: Mapping[str, object]) -> dict[str, object]:
    """Bring the sets of a trigger, which JSON knows as lists, into one order."""
    return {name: sorted(value) if isinstance(value, list) else value for name, value in trigger.items()}


async def _crash_the_forgotten(client: PrefectClient, zombie_seconds: float) -> None:
    """Crash what ran when the servers themselves were killed, and has given no sign of life since."""
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.states import Crashed

    running = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
    )
    since = datetime.now(UTC) - timedelta(seconds=zombie_seconds)
    for run in running:
        question = {
            "filter": {
                "occurred": {"since": since.isoformat()},
                "event": {"name": [_HEARTBEAT]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            }
        }
        answer = await client.request("POST", "/events/filter", json=question)
        just_started = run.start_time is not None and run.start_time > since
        if not just_started and not answer.json()["events"]:
            message = "It ran when the servers were stopped, and gives no sign of life. Run it again."
            await client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy as ``vitpipe up`` asks, in a process whose settings are made before Prefect is imported."""
    request = Request.from_json((sys.argv[1:] if arguments is None else arguments)[0])
    names = asyncio.run(deploy(request))
    sys.stdout.write(json.dumps(names) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
