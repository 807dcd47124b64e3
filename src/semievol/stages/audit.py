"""Hold the pseudo-labels of an arm against the sealed targets, where a comparison was told to open them.

Reads   data/unlabeled, the kept and dropped rows of every round, data/sealed_gold
Writes  audit/audited, audit/pseudo_labels

Nothing reads what this stage writes but reports, so no model can learn from it.
"""

from semievol.auditing import AUDIT_READS, audit_rounds, read_audited, unused_selections
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import AuditedRow


def run(ctx: StageContext) -> StageStats:
    """Audit and write."""
    audit = audit_rounds(ctx)
    n_audited = ctx.write("audit/audited", read_audited(ctx, audit), AuditedRow)
    ctx.write_json("audit/pseudo_labels", {"pseudo_labels": audit.entries, "precision_curves": audit.curves})
    last = audit.entries[-1]["precision"]
    return {"n_audited": n_audited, **{f"precision_{name}": round(p["value"], 4) for name, p in last.items()}}


STAGE = Stage(
    "audit",
    reads=AUDIT_READS,
    writes=("audit/audited", "audit/pseudo_labels"),
    sections=("task", "rounds"),
    run=run,
    unused=unused_selections,
)
