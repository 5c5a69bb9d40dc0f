"""What ingestion by jobs needs: the files that were uploaded and wait to be parsed, and the answers to requests that
may be sent again.

Tables are only added, so that processes of the release before go on while this one starts.
"""

import sqlalchemy as sa
from alembic import op

from nvr_rag.db.tables import UtcDateTime

revision = "0004"
down_revision = "0003"
oldest = "0003"  # the release before neither reads nor writes what is new here


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("document_id", sa.String(length=36), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("file", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("acl", sa.JSON(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_upload_collection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("document_id", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_collection_id"), "upload", ["collection_id"])
    op.create_index(op.f("ix_upload_job_id"), "upload", ["job_id"])
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"])
