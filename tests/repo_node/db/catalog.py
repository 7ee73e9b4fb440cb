"""A database's schema as text lines, so that two databases can be compared object by object."""

from __future__ import annotations

import asyncpg

# Of every object what Postgres itself would dump; columns by name, because a migration can only append.
CATALOG_SQL = """
    WITH classes AS (
        SELECT c.* FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
    )
    SELECT 'relation ' || relname || ' ' || relkind::text || ' ' || relpersistence::text
           || ' ' || coalesce(reloptions::text, '') || ' ' || relrowsecurity || ' ' || coalesce(relacl::text, '')
      FROM classes WHERE relkind <> 'i'
    UNION ALL
    SELECT format('column %s.%s %s null=%s default=%s identity=%s generated=%s collation=%s storage=%s compression=%s',
                  c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, l.collname, a.attstorage,
                  a.attcompression)
      FROM classes c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
      LEFT JOIN pg_collation l ON l.oid = a.attcollation
     WHERE c.relkind IN ('r', 'p', 'v', 'm')
    UNION ALL
    SELECT format('constraint %s.%s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index ' || pg_get_indexdef(i.indexrelid) || ' valid=' || i.indisvalid
      FROM pg_index i JOIN classes c ON c.oid = i.indexrelid
    UNION ALL
    SELECT format('sequence %s %s %s %s %s %s', s.seqrelid::regclass, s.seqtypid::regtype, s.seqstart, s.seqincrement,
                  s.seqmax, s.seqcycle)
      FROM pg_sequence s JOIN classes c ON c.oid = s.seqrelid
    UNION ALL
    SELECT 'function ' || pg_get_functiondef(oid) || ' ' || coalesce(proacl::text, '')
      FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
    UNION ALL
    SELECT 'trigger ' || pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
      FROM pg_trigger t JOIN classes c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT format('type %s %s %s', typname, typtype, typcategory)
      FROM pg_type WHERE typnamespace = 'public'::regnamespace
    UNION ALL
    SELECT format('comment %s %s', pg_describe_object(classoid, objoid, objsubid), description)
      FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM classes)
    UNION ALL
    SELECT 'extension ' || extname FROM pg_extension
"""


async def read_catalog(dsn: str) -> list[str]:
    """Return one line for each object of the schema ``public``, sorted."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return sorted(row[0] for row in await connection.fetch(CATALOG_SQL))
    finally:
        await connection.close()
