"""Manifests in, the stage graph out: what each stage read and wrote, by the first digits of its hashes."""

from __future__ import annotations

from html import escape
from typing import Any

from talaria.report.card import duration
from talaria.report.run_data import RunData

_ROW, _WIDTH, _SHORT = 50, 460, 10


def lineage_section(data: RunData) -> str:
    """The graph, then a table of inputs and outputs, then each stage's settings."""
    if not data.manifests:
        return '<p class="missing">No stage of this run has left a manifest.</p>'
    parts = [
        "<p>Each stage is bound to what it read and to the manifests of the stages it stands on; "
        "<code>talaria verify</code> recomputes every hash.</p>",
        _graph(data),
        '<div class="wide"><table><thead><tr><th>stage</th><th>read</th><th>wrote</th></tr></thead><tbody>',
    ]
    for stage, manifest in data.manifests.items():
        read, wrote = _hashes(manifest.get("inputs", {})), _hashes(manifest.get("outputs", {}))
        parts.append(f"<tr><td>{escape(stage)}</td><td>{read}</td><td>{wrote}</td></tr>")
    parts.append("</tbody></table></div>")
    parts.append(_made_with(next(reversed(data.manifests.values()))))
    for stage in data.settings:
        text = (data.folder / stage / "config.toml").read_text(encoding="utf-8")
        parts.append(f"<details><summary>settings of {escape(stage)}</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)


def _graph(data: RunData) -> str:
    """Stages from top to bottom, an arc from each parent to its child."""
    stages = list(data.manifests)
    row_of = {stage: index for index, stage in enumerate(stages)}
    spans = [row_of[stage] - row_of[parent] for stage in stages for parent in _parents(data, stage) if parent in row_of]
    left = 20 + 14 * max([span - 1 for span in spans] or [0])
    height = _ROW * len(stages)
    parts = [f'<svg class="lineage" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="stages of the run">']
    for stage in stages:
        y = _ROW * row_of[stage] + 20
        for parent in _parents(data, stage):
            if parent in row_of:
                above = _ROW * row_of[parent] + 20
                bend = left - 14 * (row_of[stage] - row_of[parent] - 1) * 1.6
                middle = (above + y) / 2
                parts.append(f'<path d="M{left},{above} Q{bend:.0f},{middle:.0f} {left},{y}"/>')
    for stage in stages:
        y = _ROW * row_of[stage] + 20
        manifest = data.manifests[stage]
        told = f"{duration(manifest['seconds'])}, " if "seconds" in manifest else ""
        changed = [parent for parent, sha in _parents(data, stage).items() if data.manifest_hashes.get(parent) != sha]
        digest = data.manifest_hashes[stage][:_SHORT]
        stale = f"; made from another {', '.join(changed)}" if changed else ""
        parts.append(
            f'<circle cx="{left}" cy="{y}" r="5"/>'
            f'<text class="stage" x="{left + 16}" y="{y + 1}">{escape(stage)}</text>'
            f'<text x="{left + 16}" y="{y + 17}">{told}manifest {digest}{escape(stale)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _parents(data: RunData, stage: str) -> dict[str, str]:
    parents: dict[str, str] = data.manifests[stage].get("parents", {})
    return parents


def _hashes(files: dict[str, str], most: int = 6) -> str:
    shown = [f"{escape(name)} <span class='hash note'>{escape(sha[:_SHORT])}</span>" for name, sha in files.items()]
    more = [f"<span class='note'>and {len(shown) - most} more</span>"] if len(shown) > most else []
    return "<br>".join(shown[:most] + more) or "<span class='note'>nothing</span>"


def _made_with(manifest: dict[str, Any]) -> str:
    code = manifest.get("code_version") or {}
    version = code.get("package", "unknown version") if isinstance(code, dict) else str(code)
    commit = f", commit {code['git_commit'][:_SHORT]}" if isinstance(code, dict) and code.get("git_commit") else ""
    libraries = ", ".join(f"{name} {release}" for name, release in manifest.get("libraries", {}).items())
    return f'<p class="note">Talaria {escape(version + commit)}; {escape(libraries)}.</p>'
