"""The only door to MLflow: runs, the model registry, aliases, promotion and roll back.

No call uses MLflow's active run (it is local to a thread): every call names its run. No call uses MLflow's global
tracking URI: one process may serve two workspaces.

Without ``MLFLOW_TRACKING_URI`` the store is a SQLite file in the workspace, with the artifacts beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vitpipe.atomic import workspace_errors
from vitpipe.config import PipelineConfig
from vitpipe.errors import ConfigError, ContractError
from vitpipe.infer import facts, versions
from vitpipe.infer.package import Package, neutralise, open_package, requirements, stage_package
from vitpipe.infer.quiet import silence_telemetry
from vitpipe.infer.serving import serve
from vitpipe.infer.tracking import TrackingStore, tracking_store
from vitpipe.infer.versions import Journal, ModelIdentity, RegisteredVersion

if TYPE_CHECKING:
    from vitpipe.infer.predictor import Predictor
    from vitpipe.manifest import Manifest

silence_telemetry()  # MLflow reads it while it is imported.

import mlflow.artifacts  # noqa: E402
import mlflow.models  # noqa: E402
import requests  # noqa: E402
import sqlalchemy.exc  # noqa: E402
from mlflow import MlflowClient, entities  # noqa: E402
from mlflow.entities.model_registry import ModelVersion  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.models import Model, ModelSignature  # noqa: E402
from mlflow.pyfunc import save_model  # noqa: E402
from mlflow.pyfunc.model import PythonModel, PythonModelContext  # noqa: E402
from mlflow.types import ColSpec, DataType, Schema, TensorSpec  # noqa: E402

_JOURNAL = "vitpipe.champions"
_VERDICT = "vitpipe.verdict"
_REASON = "vitpipe.reason"
_TAG_LENGTH = 4000

__all__ = ["RegisteredVersion", "Registry", "open_registry", "serve_package"]


def open_registry(workspace: Path | None) -> Registry:
    """Open the registry that ``MLFLOW_TRACKING_URI`` names, else the one in the workspace, which is made.

    Raises:
        ConfigError: the URI is no store that can be used, or neither URI nor workspace is given.
        TransientError: the server does not answer.
    """
    store = tracking_store(workspace)
    store.prepare()
    return Registry(store)


class Registry:
    """A tracking store and its model registry.

    Args:
        store: where they lie; prepared.

    Raises:
        ConfigError, TransientError: see :func:`open_registry`.
    """

    def __init__(self, store: TrackingStore) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._store = store
        self._client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
        with self._speaking("open the registry"):
            self._client.search_registered_models(max_results=1)

    # ---------------------------------------------------------------------------------------------------------- runs

    def start_run(self, experiment: str, run_name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        """Start a run, or find it again, and give its id: one ``vitpipe.run_id`` is one run, however often cut off.

        Args:
            experiment: made where it does not exist.
            run_name: shown in the list.
            tags: must hold ``vitpipe.run_id``.
            params: logged once; no path, no identifier.
        """
        with self._speaking(f"start a run in the experiment {experiment}"):
            experiment_id = self._experiment(experiment)
            run_id = tags[facts.RUN_TAG]
            known = self._client.search_runs([experiment_id], f"tags.`{facts.RUN_TAG}` = '{run_id}'", max_results=1)
            if known:
                run = known[0]
                if run.info.status != "RUNNING":
                    self._client.update_run(run.info.run_id, status="RUNNING")
            else:
                run = self._client.create_run(experiment_id, run_name=run_name, tags=dict(tags))
            new = [
                entities.Param(key, str(value)[:_TAG_LENGTH])
                for key, value in params.items()
                if key not in run.data.params
            ]
            new_tags = [entities.RunTag(key, value) for key, value in tags.items()]
            self._client.log_batch(run.info.run_id, params=new, tags=new_tags)
            return str(run.info.run_id)

    def log_progress(self, mlflow_run_id: str, values: Mapping[str, float | None], *, step: int) -> None:
        """Log live metrics of one training step; what is None or not finite is left out."""
        now = int(time.time() * 1000)
        metrics = [
            entities.Metric(f"train/{key}", float(value), now, step)
            for key, value in values.items()
            if value is not None and np.isfinite(value)
        ]
        with self._speaking("log progress"):
            self._client.log_batch(mlflow_run_id, metrics=metrics)

    def log_results(self, mlflow_run_id: str, run_folder: Path, manifest: Manifest) -> None:
        """Log metrics, report, model card and the lineage of the data (digest and counts; no pixel, no path)."""
        flat = facts.flat_metrics(facts.read_metrics(run_folder))
        now = int(time.time() * 1000)
        lineage = entities.DatasetInput(
            entities.Dataset(**facts.lineage(manifest)),
            tags=[entities.InputTag("mlflow.data.context", "train, val, calibration and test")],
        )
        with self._speaking("log the results"):
            self._client.log_batch(
                mlflow_run_id, metrics=[entities.Metric(key, value, now, 0) for key, value in flat.items()]
            )
            self._client.log_inputs(mlflow_run_id, [lineage])
            for name in facts.RUN_ARTIFACTS:
                if (run_folder / name).is_file():
                    self._client.log_artifact(mlflow_run_id, str(run_folder / name))

    def finish_run(self, mlflow_run_id: str, *, failed: bool = False) -> None:
        """Mark a run FINISHED or FAILED."""
        with self._speaking("finish the run"):
            self._client.set_terminated(mlflow_run_id, status="FAILED" if failed else "FINISHED")

    # ------------------------------------------------------------------------------------------------------ register

    def register(
        self, mlflow_run_id: str, run_folder: Path, config: PipelineConfig, manifest: Manifest
    ) -> RegisteredVersion:
        """Register the model of a run as challenger and let the gate decide about the champion.

        Doing it again changes nothing: equal packages are one version, and a version is judged once.

        Args:
            mlflow_run_id: the run, see :meth:`start_run`.
            run_folder: its folder, trained and evaluated.
            config: `registration` names the model and the gate.
            manifest: its test tiles are what champion and challenger are compared on.

        Raises:
            ConfigError: the configuration names no registered model.
            ContractError: the run folder is not whole.
        """
        from vitpipe.infer import contest  # aliases are moved without torch

        recipe = config.registration
        if recipe is None:
            raise ConfigError(f"{config.name}: no `register` in the configuration, thus no name to register under")
        package = open_package(run_folder / "model")
        with self._speaking(f"register {recipe.model}"):
            known = self._version_of(recipe.model, package)
            version = known or self._add_version(mlflow_run_id, run_folder, package, config)
            if _VERDICT in version.tags:
                return dataclasses.replace(self._describe(version), already=True)
            self._client.set_registered_model_alias(recipe.model, versions.CHALLENGER, version.version)
            champion = self._champion(recipe.model)
            with tempfile.TemporaryDirectory(prefix="vitpipe-") as folder:
                rival = None
                if champion is not None and str(champion.version) != str(version.version):
                    rival = self._download(champion, Path(folder))
                decision = contest.hold(rival, run_folder, config, manifest)
            self._client.log_dict(mlflow_run_id, decision.record, "decision.json")
            verdict = (
                versions.REFUSED
                if not decision.allowed
                else versions.PROMOTED
                if recipe.approval == "auto"
                else versions.WAITING
            )
            reason = decision.reason
            if verdict == versions.WAITING:
                reason += f" Approval is manual: `vitpipe promote {recipe.model} {version.version}` makes it champion."
            if verdict == versions.PROMOTED:
                self.promote(recipe.model, version.version)
            # Last: a version with a verdict is done.
            self._client.set_model_version_tag(recipe.model, version.version, _REASON, reason[:_TAG_LENGTH])
            self._client.set_model_version_tag(recipe.model, version.version, _VERDICT, verdict)
            return self._describe(self._client.get_model_version(recipe.model, version.version))

    def promote(self, name: str, version: str) -> RegisteredVersion:
        """Make a version the champion; the one before it becomes `previous_champion`.

        The journal (a tag of the registered model) is written first and the aliases follow from it, so a killed
        process leaves the old champion or the new one, and the next call finishes what the journal says.

        Raises:
            ConfigError: there is no such model or version.
        """
        with self._speaking(f"promote version {version} of {name}"):
            found = self._client.get_model_version(name, version)
            self._move(name, self._settled(name).crowned(str(found.version)))
            return self._describe(found)

    def rollback(self, name: str) -> RegisteredVersion:
        """Make the champion before the present one champion again.

        Raises:
            ConfigError: there is no such model, or it has had no other champion.
        """
        with self._speaking(f"roll back {name}"):
            journal = self._settled(name).rolled_back(name)
            self._move(name, journal)
            return self._describe(self._client.get_model_version(name, journal.champions[-1]))

    # ---------------------------------------------------------------------------------------------------------- load

    def load_predictor(self, uri: str) -> Predictor:
        """Load a registered model: safetensors and JSON alone, no code of it is run; raises as :meth:`fetch`."""
        from vitpipe.infer.predictor import Predictor

        with tempfile.TemporaryDirectory(prefix="vitpipe-") as folder:
            return Predictor.load(self.fetch(uri, Path(folder)))

    def fetch(self, uri: str, folder: Path) -> Path:
        """Download the package of a registered model below `folder`, check its SHA-256, and give the package folder.

        The URI is ``models:/name@champion`` or ``models:/name/3``.

        Raises:
            ConfigError: there is no such model.
            ContractError: the files are not those that were registered.
        """
        with self._speaking(f"load {uri}"):
            return self._download(self._find(uri), folder)

    def resolve(self, uri: str) -> str:
        """Give the URI of the version that an alias names now, ``models:/name/3``; ConfigError where there is none."""
        with self._speaking(f"find {uri}"):
            return self._describe(self._find(uri)).uri

    def identify(self, uri: str) -> ModelIdentity:
        """Say who a registered model is, for what it writes; raises as :meth:`resolve`."""
        with self._speaking(f"find {uri}"):
            found = self._find(uri)
            tags = dict(found.tags)
            if found.run_id:
                tags |= self._client.get_run(found.run_id).data.tags
            return ModelIdentity.read(found.name, str(found.version), found.run_id, tags)

    def challenger(self, name: str) -> str:
        """Give the number of the version under test; raises as :meth:`resolve`."""
        return self.resolve(f"models:/{name}@{versions.CHALLENGER}").rpartition("/")[2]

    # ------------------------------------------------------------------------------------------------------- private

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = str((self._store.artifact_root / name).absolute()) if self._store.artifact_root else None
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._experiment(name)
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"the experiment {name} was deleted in {self._store.shown}; restore it with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or set another `name`"
            )
        return str(found.experiment_id)

    def _find(self, uri: str) -> ModelVersion:
        name, alias, number = versions.parse_model_uri(uri)
        if alias is not None:
            return self._client.get_model_version_by_alias(name, alias)
        return self._client.get_model_version(name, str(number))

    def _version_of(self, name: str, package: Package) -> ModelVersion | None:
        found = self._client.search_model_versions(
            f"name = '{name}' and tags.`{facts.PACKAGE_TAG}` = '{package.digest}'", order_by=["version_number ASC"]
        )
        return found[0] if found else None

    def _add_version(
        self, mlflow_run_id: str, run_folder: Path, package: Package, config: PipelineConfig
    ) -> ModelVersion:
        assert config.registration is not None
        name = config.registration.model
        tags = facts.package_tags(package) | facts.headline_tags(facts.read_metrics(run_folder), config)
        model_id, location = self._logged_model(mlflow_run_id, run_folder, package, tags)
        with contextlib.suppress(MlflowException):
            self._client.create_registered_model(name)  # It may exist; other failures show in the next call.
        # A store without a server resolves `models:/m-...` by the global tracking URI, which is not ours.
        return self._client.create_model_version(
            name,
            source=f"models:/{model_id}" if self._store.served else location,
            run_id=mlflow_run_id,
            tags=tags,
            model_id=model_id,
        )

    def _logged_model(
        self, mlflow_run_id: str, run_folder: Path, package: Package, tags: Mapping[str, str]
    ) -> tuple[str, str]:
        """Upload the model, unless a killed process already did; returns its id and place."""
        run = self._client.get_run(mlflow_run_id)
        known = self._client.search_logged_models(
            [run.info.experiment_id], filter_string=f"tags.`{facts.PACKAGE_TAG}` = '{package.digest}'"
        )
        for model in known:
            if model.status == entities.LoggedModelStatus.READY:
                return model.model_id, model.artifact_location
            self._client.delete_logged_model(model.model_id)
        model = self._client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=mlflow_run_id, tags=dict(tags), model_type="classifier"
        )
        with tempfile.TemporaryDirectory(prefix="vitpipe-") as folder:
            saved = _save_pyfunc(run_folder, package, Path(folder), (model.model_id, mlflow_run_id))
            self._client.log_model_artifacts(model.model_id, str(saved))
        self._client.finalize_logged_model(model.model_id, entities.LoggedModelStatus.READY)
        self._client.log_outputs(mlflow_run_id, [entities.LoggedModelOutput(model.model_id, 0)])
        return model.model_id, model.artifact_location

    def _download(self, version: ModelVersion, folder: Path) -> Path:
        sha256 = version.tags.get(facts.SHA_TAG)
        if sha256 is None:
            raise ContractError(
                f"models:/{version.name}/{version.version} was not registered by vitpipe (no tag {facts.SHA_TAG})"
            )
        place = self._client.get_model_version_download_uri(version.name, version.version)
        package = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{place.rstrip('/')}/artifacts/package", dst_path=str(folder), tracking_uri=self._store.uri
        )
        open_package(Path(package), sha256=sha256)
        return Path(package)

    def _champion(self, name: str) -> ModelVersion | None:
        aliases = self._client.get_registered_model(name).aliases
        return (
            self._client.get_model_version(name, aliases[versions.CHAMPION]) if versions.CHAMPION in aliases else None
        )

    def _settled(self, name: str) -> Journal:
        """Give the journal, after finishing what a killed process began."""
        model = self._client.get_registered_model(name)
        journal = Journal.read(model.tags.get(_JOURNAL), model.aliases)
        if not journal.done:
            self._move(name, journal)
        return journal

    def _move(self, name: str, journal: Journal) -> None:
        self._client.set_registered_model_tag(name, _JOURNAL, journal.write(done=False))
        if len(journal.champions) > 1:
            self._client.set_registered_model_alias(name, versions.PREVIOUS, journal.champions[-2])
        elif versions.PREVIOUS in self._client.get_registered_model(name).aliases:
            self._client.delete_registered_model_alias(name, versions.PREVIOUS)
        self._client.set_registered_model_alias(name, versions.CHAMPION, journal.champions[-1])
        self._client.set_registered_model_tag(name, _JOURNAL, journal.write(done=True))

    def _describe(self, version: ModelVersion) -> RegisteredVersion:
        aliases = self._client.get_registered_model(version.name).aliases
        return RegisteredVersion(
            name=version.name,
            version=str(version.version),
            aliases=tuple(sorted(alias for alias, held in aliases.items() if str(held) == str(version.version))),
            verdict=version.tags.get(_VERDICT, ""),
            reason=version.tags.get(_REASON, ""),
        )

    @contextlib.contextmanager
    def _speaking(self, what: str) -> Iterator[None]:
        """Turn what MLflow raises into errors of ours."""
        try:
            with workspace_errors(self._store.artifact_root or Path(self._store.shown)):
                yield
        except (requests.RequestException, sqlalchemy.exc.OperationalError) as error:
            raise self._store.error(what, 503, str(error)) from error
        except MlflowException as error:
            status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            raise self._store.error(what, status, str(error)) from error


# ------------------------------------------------------------------------------------------------------------ serving


class PackageModel(PythonModel):
    """A package as MLflow serves it, see :func:`vitpipe.infer.serving.serve`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the package: safetensors and JSON."""
        from vitpipe.infer.predictor import Predictor

        self._predictor = Predictor.load(Path(context.artifacts["package"]))

    # MLflow knows the bare hint `ndarray`, and its schema has made an array of whatever came; others it warns about.
    def predict(self, context: object, model_input: np.ndarray, params: object = None) -> pd.DataFrame:  # noqa: ARG002
        """Predict; a row a tile."""
        return serve(self._predictor, model_input)


def serve_package() -> None:
    """Name :class:`PackageModel` as the model; called by the code file in a registered model."""
    mlflow.models.set_model(PackageModel())


def _save_pyfunc(run_folder: Path, package: Package, folder: Path, ids: tuple[str, str]) -> Path:
    staged, code = stage_package(run_folder, folder / "staged")
    model_id, mlflow_run_id = ids
    described = package.description
    # One signature for both inputs: an array of any rank passes as it is, a table of paths as its one column.
    # The package checks what is in them, in sentences.
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("O"), (-1,))]), outputs=_output_schema(described))
    saved = folder / "saved"
    save_model(
        path=str(saved),
        python_model=str(code),
        artifacts={"package": str(staged)},
        signature=signature,
        input_example=pd.DataFrame({"path": ["folder/of/one/source"]}),
        pip_requirements=requirements(),
        metadata={"vitpipe": facts.contract(described)},
        mlflow_model=Model(artifact_path="model", run_id=mlflow_run_id, model_id=model_id),
    )
    neutralise(saved / "MLmodel")
    return saved


def _output_schema(described: Mapping[str, Any]) -> Schema:
    kinds = {str: DataType.string, float: DataType.double, bool: DataType.boolean}
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(kinds[kind], name) for name, kind in facts.output_columns(described).items()
    ]
    return Schema(columns)
