"""What the feedback loop needs: judgments, evaluations, where a deployment comes from, what a process has ready.

Columns are added and no table is made anew: SQLite would have to drop tables that others refer to.
"""

import sqlalchemy as sa
from alembic import op

from nvr_rag.db.tables import UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("encoder", sa.String(length=64), nullable=False),
        sa.Column("deployment_id", sa.Integer(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("measures", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["encoder"], ["encoder_version.fingerprint"], name=op.f("fk_evaluation_encoder")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
    )
    op.create_index(op.f("ix_evaluation_encoder"), "evaluation", ["encoder"])
    op.create_table(
        "judgment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("query_key", sa.String(length=64), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("document_id", sa.String(length=36), nullable=False),
        sa.Column("chunk_id", sa.String(length=36), nullable=False),
        sa.Column("grade", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("grade >= 0", name=op.f("ck_judgment_grade")),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_judgment_collection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["document_id"], ["document.id"], name=op.f("fk_judgment_document_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgment")),
        sa.UniqueConstraint("collection_id", "origin", "query_key", "document_id", "chunk_id", name="uq_judgment"),
    )
    op.create_index(op.f("ix_judgment_document_id"), "judgment", ["document_id"])
    op.add_column("deployment", sa.Column("stopped_at", UtcDateTime(), nullable=True))
    op.add_column("deployment", sa.Column("run", sa.String(length=36), nullable=True))
    op.create_index("uq_deployment_run", "deployment", ["run"], unique=True)
    op.add_column("encoder_version", sa.Column("training", sa.JSON(), nullable=True))
    op.add_column("encoder_version", sa.Column("removed_at", UtcDateTime(), nullable=True))
    op.add_column("process", sa.Column("prepared", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("search_index", sa.Column("dropped_at", UtcDateTime(), nullable=True))
