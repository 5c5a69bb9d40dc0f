"""Who may do what: API keys, who asked a query, who asked for a job, and where documents with an acl are.

Tables and columns are only added, so that processes of the release before go on while this one starts: they listen on
their own machine only, and show no document that has an acl.
"""

import sqlalchemy as sa
from alembic import op

from nvr_rag.db.tables import UtcDateTime

revision = "0005"
down_revision = "0004"
oldest = "0003"  # neither release before reads or writes what is new here


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("collections", sa.JSON(), nullable=True),
        sa.Column("principals", sa.JSON(), nullable=False),
        sa.Column("everything", sa.Boolean(), nullable=False),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("revoked_at", UtcDateTime(), nullable=True),
        sa.CheckConstraint("per_minute IS NULL OR per_minute > 0", name=op.f("ck_api_key_per_minute")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.add_column("query", sa.Column("asker", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("feedback", sa.Column("session", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("key_id", sa.String(length=16), nullable=True))
    op.add_column("job", sa.Column("asker", sa.String(length=64), nullable=True))
    op.add_column("document_version", sa.Column("acl", sa.JSON(), nullable=True))
    # Nobody wrote down what older versions were restricted to: to what their document is.
    op.execute(
        "UPDATE document_version SET acl = (SELECT d.acl FROM document d WHERE d.id = document_version.document_id) "
        "WHERE document_id IN (SELECT d.id FROM document d WHERE d.acl IS NOT NULL)"
    )
    op.create_index(
        "ix_document_restricted",
        "document",
        ["collection_id"],
        sqlite_where=sa.text("acl IS NOT NULL"),
        postgresql_where=sa.text("acl IS NOT NULL"),
    )
