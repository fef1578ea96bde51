"""The test of a file is found by its path: ``pfl_mobile/a/b.py`` has ``tests/a/test_b.py``.

Modules of the other packages have theirs under ``tests/exporters``, ``tests/server`` and ``tests/recipes``. A module of
more than ``LINES`` lines without one is listed here with the tests that try it instead.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folder of each package, and where its tests begin.
PACKAGES = {
    "pfl_mobile": "tests",
    "exporters/pfl_exporters": "tests/exporters",
    "server/pfl_server": "tests/server",
    "recipes/pfl_recipes": "tests/recipes",
}
#: Lines up to which a module may be tried through those that use it.
LINES = 60

#: By test: modules, or patterns of whole families, that it tries instead, as a table over all of a kind or through
#: the whole that they are a part of.
ELSEWHERE = {
    "tests/bundle/test_manifest.py": ["pfl_mobile/bundle/consistency.py"],
    "tests/bundle/test_read.py": ["pfl_mobile/bundle/source.py"],
    "tests/cli/test_demo.py": ["recipes/pfl_recipes/keyboard/demo.py"],
    "tests/cli/test_privacy_cmd.py": ["pfl_mobile/cli/privacy.py"],
    "tests/cli/test_studies.py": ["pfl_mobile/cli/compare.py"],
    "tests/conformance/test_protocol.py": ["pfl_mobile/protocol/answers.py"],
    "tests/conformance/test_vectors.py": ["pfl_mobile/local/memory.py"],
    "tests/data/test_fetch.py": ["pfl_mobile/data/cache.py", "pfl_mobile/data/obtain.py"],
    "tests/data/test_generated.py": [
        "pfl_mobile/data/driving.py",
        "pfl_mobile/data/femnist_like.py",
        "pfl_mobile/data/fraud.py",
    ],
    "tests/data/test_images.py": ["pfl_mobile/data/*mnist.py"],
    "tests/data/test_number_sources.py": ["pfl_mobile/data/tables.py"],
    "tests/data/test_populations.py": ["pfl_mobile/data/user_groups.py", "pfl_mobile/data/user_rows.py"],
    "tests/device/test_privacy.py": ["pfl_mobile/privacy/local.py"],
    "tests/device/test_real_server.py": ["pfl_mobile/cli/device.py"],
    "tests/device/test_transfer.py": ["pfl_mobile/device/client.py"],
    "tests/exporters/test_hugging_face.py": [
        "exporters/pfl_exporters/families.py",
        "exporters/pfl_exporters/model_folder.py",
    ],
    "tests/exporters/test_staging.py": ["exporters/pfl_exporters/lowering/files.py"],
    "tests/exporters/test_targets.py": [
        "exporters/pfl_exporters/export.py",
        "exporters/pfl_exporters/lowering/onnx.py",
        "pfl_mobile/engines/compare.py",
        "pfl_mobile/engines/onnxruntime.py",
        "pfl_mobile/engines/torch.py",
    ],
    "tests/modules/test_mixture.py": ["pfl_mobile/modules/evidence.py"],
    "tests/programs/test_one_row.py": ["pfl_mobile/programs/rowwise.py"],
    "tests/programs/test_forms.py": ["pfl_mobile/programs/forms/*.py"],
    "tests/federation/test_default_privacy.py": ["server/pfl_server/federation/defaults.py"],
    "tests/federation/test_same_answer.py": [
        "pfl_mobile/federation/checks.py",
        "pfl_mobile/federation/compose.py",
    ],
    "tests/fuzz/test_commands.py": ["pfl_mobile/cli/common.py"],
    "tests/fuzz/test_programs.py": ["pfl_mobile/engines/isolated.py"],
    "tests/local/test_evaluation.py": ["pfl_mobile/local/measure.py"],
    "tests/local/test_trainer.py": ["pfl_mobile/local/checkpoint.py", "pfl_mobile/local/session.py"],
    "tests/modules/test_personalize.py": [
        "pfl_mobile/modules/insertion.py",
        "pfl_mobile/modules/model.py",
        "pfl_mobile/modules/roles.py",
    ],
    "tests/plan/test_phases.py": ["pfl_mobile/local/phases.py"],
    "tests/privacy/test_accounting.py": ["pfl_mobile/privacy/accounting_events.py"],
    "tests/privacy/test_config.py": [
        "pfl_mobile/privacy/device_noise.py",
        "pfl_mobile/privacy/limits.py",
        "pfl_mobile/privacy/mechanism.py",
        "pfl_mobile/privacy/no_noise.py",
        "pfl_mobile/privacy/statement.py",
    ],
    "tests/privacy/test_plan.py": ["pfl_mobile/privacy/calibration.py"],
    "tests/programs/test_trace.py": ["pfl_mobile/programs/deployment.py"],
    "tests/recipes/keyboard/test_federated.py": ["recipes/pfl_recipes/keyboard/processes.py"],
    "tests/recipes/keyboard/test_gate.py": [
        "pfl_mobile/modules/shared_ngrams.py",
        "recipes/pfl_recipes/keyboard/ngrams.py",
    ],
    "tests/recipes/keyboard/test_trigram.py": ["recipes/pfl_recipes/keyboard/baselines.py"],
    "tests/recipes/synthetic/test_reference.py": ["recipes/pfl_recipes/synthetic/published.py"],
    "tests/recipes/test_studies.py": ["recipes/pfl_recipes/*/study.py"],
    "tests/server/dashboard/test_dashboard.py": [
        "server/pfl_server/dashboard/*.py",
        "server/pfl_server/reports/quality.py",
        "server/pfl_server/reports/wording.py",
    ],
    "tests/server/rounds/test_bounds.py": ["server/pfl_server/summary.py"],
    "tests/server/rounds/test_merge.py": [
        "server/pfl_server/rounds/accepted_updates.py",
        "server/pfl_server/storage/sets.py",
    ],
    "tests/server/storage/test_blobs.py": ["server/pfl_server/storage/files.py"],
    "tests/server/storage/test_database.py": [
        "server/pfl_server/storage/migrations/*",
        "server/pfl_server/storage/models.py",
    ],
    "tests/server/test_app.py": [
        "server/pfl_server/counting/logs.py",
        "server/pfl_server/counting/metrics.py",
        "server/pfl_server/counting/refusals.py",
        "server/pfl_server/problems.py",
        "server/pfl_server/services.py",
        "server/pfl_server/settings.py",
        "server/pfl_server/web/answers.py",
        "server/pfl_server/web/api/health.py",
    ],
    "tests/server/test_privacy_counted.py": ["server/pfl_server/storage/seal.py"],
    "tests/server/test_serve.py": [
        "pfl_mobile/cli/serve.py",
        "server/pfl_server/federation/checks.py",
        "server/pfl_server/federation/config.py",
        "server/pfl_server/launch.py",
    ],
    "tests/server/uploads/test_path.py": ["server/pfl_server/web/api/tasks.py"],
    "tests/server/web/api/test_admin.py": [
        "server/pfl_server/reports/queries.py",
        "server/pfl_server/reports/status.py",
        "server/pfl_server/rounds/admin_actions.py",
        "server/pfl_server/web/api/admin_bodies.py",
    ],
    "tests/server/web/api/test_enrolment.py": [
        "server/pfl_server/identity/attestation.py",
    ],
    "tests/server/web/test_openapi.py": ["pfl_mobile/protocol/bodies.py"],
    "tests/simulation/test_backend.py": ["pfl_mobile/simulation/process.py"],
    "tests/simulation/test_private_rounds.py": ["pfl_mobile/simulation/privacy.py"],
    "tests/simulation/test_rounds.py": ["pfl_mobile/simulation/sending.py"],
    "tests/strategies/test_all.py": ["pfl_mobile/hyperparameters.py", "pfl_mobile/strategies/strategy.py"],
    "tests/strategies/test_inserted.py": [
        "pfl_mobile/strategies/moe.py",
        "pfl_mobile/strategies/soft_prompt.py",
    ],
    "tests/strategies/test_private_weights.py": ["pfl_mobile/strategies/weighting.py"],
    "tests/strategies/test_qffl.py": ["pfl_mobile/strategies/afl.py"],
    "tests/strategies/test_server_state_file.py": ["pfl_mobile/strategies/state.py"],
    "tests/study/test_compare.py": ["pfl_mobile/study/comparison.py"],
    "tests/study/test_plots.py": ["pfl_mobile/study/privacy_plots.py"],
    "tests/study/test_privacy_cost.py": ["pfl_mobile/privacy/cost.py"],
    "tests/test_registry.py": ["*/registry.py"],
    "tests/vectorized/test_cohort.py": [
        "pfl_mobile/vectorized/phases.py",
        "pfl_mobile/vectorized/steps.py",
        "pfl_mobile/vectorized/update.py",
    ],
    "tests/vectorized/test_emit.py": ["pfl_mobile/vectorized/calls.py"],
}


def _mirrored(module: Path, package: str) -> Path:
    place = module.relative_to(ROOT / package)
    return ROOT / PACKAGES[package] / place.parent / f"test_{place.name.lstrip('_')}"


def _unmirrored() -> list[str]:
    return [
        str(module.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for module in sorted((ROOT / package).rglob("*.py"))
        if module.name != "__init__.py"
        and len(module.read_text().splitlines()) > LINES
        and not _mirrored(module, package).exists()
    ]


UNMIRRORED = _unmirrored()
LISTED = [pattern for patterns in ELSEWHERE.values() for pattern in patterns]


@pytest.mark.parametrize("module", UNMIRRORED)
def test_a_module_has_a_test_of_its_name_or_is_listed(module: str) -> None:
    listed = [pattern for pattern in LISTED if fnmatchcase(module, pattern)]
    assert listed, (
        f"write the test of {module} at its mirrored path, or list what tries it in {Path(__file__).name}"
    )


@pytest.mark.parametrize("pattern", LISTED)
def test_nothing_is_listed_that_is_gone_or_has_a_test_of_its_name(pattern: str) -> None:
    assert any(fnmatchcase(module, pattern) for module in UNMIRRORED), f"take {pattern} off the list"


@pytest.mark.parametrize("test", ELSEWHERE)
def test_the_tests_that_are_named_instead_are_there(test: str) -> None:
    assert (ROOT / test).exists()
