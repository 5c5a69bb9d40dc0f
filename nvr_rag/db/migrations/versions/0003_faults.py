"""What surviving faults needs: retries and cancelling of jobs, one maintainer for an index, erasures, and which older
releases may go on working on this schema.

Columns and tables are only added, so that processes of the release before go on while this one starts.
"""

import sqlalchemy as sa
from alembic import op

from nvr_rag.db.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
oldest = "0002"  # the release before neither reads nor writes what is new here


def upgrade() -> None:
    op.create_table(
        "schema_info",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("oldest", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schema_info")),
        sa.CheckConstraint("id = 1", name=op.f("ck_schema_info_one")),
    )
    op.create_table(
        "erasure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("collection", sa.String(length=64), nullable=True),
        sa.Column("pending", sa.JSON(), nullable=True),
        sa.Column("removed", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("kind IN ('document', 'user')", name=op.f("ck_erasure_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure")),
    )
    op.add_column("job", sa.Column("due_at", UtcDateTime(), nullable=True))
    op.add_column("job", sa.Column("cancel_at", UtcDateTime(), nullable=True))
    op.add_column("job", sa.Column("finished_at", UtcDateTime(), nullable=True))
    op.add_column("job", sa.Column("failures", sa.JSON(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("process", sa.Column("job_kinds", sa.JSON(), nullable=True))
    op.add_column("search_index", sa.Column("rebuilt_to", sa.Integer(), nullable=True))
    op.add_column("search_index", sa.Column("copied_from", sa.Integer(), nullable=True))
    op.add_column("search_index", sa.Column("maintainer", sa.String(length=36), nullable=True))
    op.add_column("search_index", sa.Column("maintained_until", UtcDateTime(), nullable=True))
    op.add_column("search_index", sa.Column("progress", sa.JSON(), nullable=True))
    op.create_index(op.f("ix_query_user"), "query", ["user"])
    op.create_index(op.f("ix_feedback_user"), "feedback", ["user"])
