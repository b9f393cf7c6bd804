//! What other roles may do in the Data Warehouse's database (Grafana's reader, reports): how
//! it is asked, as the statements that grant it elsewhere.
//!
//! The owner's own rights come with its tables. `PUBLIC` counts on tables and sequences only:
//! on schemas its rights are each server's defaults.

/// `grants`: a query whose rows are a role (empty: `PUBLIC`), a tab, and a statement that
/// grants it the same in another database; `:"DBNAME"` is psql's name of that.
macro_rules! grants {
    () => {
        r#"grants() { cat <<'SQL'
select coalesce(r.rolname::text, '') || chr(9) || g.statement from (
  select a.grantee, 'grant ' || a.privilege_type || ' on ' || o.kind || ' ' || o.name || ' to ' || coalesce(quote_ident(t.rolname::text), 'public') || case when a.is_grantable then ' with grant option' else '' end as statement
  from (
    select case c.relkind when 'S' then 'sequence' else 'table' end as kind, quote_ident(n.nspname::text) || '.' || quote_ident(c.relname::text) as name, c.relowner as owner, c.relacl as acl
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'v', 'm', 'p', 'f', 'S') and left(n.nspname::text, 3) <> 'pg_' and n.nspname <> 'information_schema'
    union all select 'schema', quote_ident(nspname::text), nspowner, nspacl from pg_namespace where left(nspname::text, 3) <> 'pg_' and nspname <> 'information_schema'
    union all select 'database', ':"DBNAME"', datdba, datacl from pg_database where datname = current_database()
  ) o cross join lateral aclexplode(o.acl) a left join pg_roles t on t.oid = a.grantee
  where a.grantee <> o.owner and (a.grantee <> 0 or o.kind in ('table', 'sequence'))
  union all
  select a.grantee, 'grant ' || a.privilege_type || ' (' || quote_ident(c.attname::text) || ') on table ' || quote_ident(n.nspname::text) || '.' || quote_ident(k.relname::text) || ' to ' || coalesce(quote_ident(t.rolname::text), 'public')
  from pg_attribute c join pg_class k on k.oid = c.attrelid join pg_namespace n on n.oid = k.relnamespace cross join lateral aclexplode(c.attacl) a left join pg_roles t on t.oid = a.grantee
  where left(n.nspname::text, 3) <> 'pg_' and n.nspname <> 'information_schema' and a.grantee <> k.relowner
  union all
  select a.grantee, 'alter default privileges' || coalesce(' in schema ' || quote_ident(n.nspname::text), '') || ' grant ' || a.privilege_type || ' on ' || case d.defaclobjtype when 'S' then 'sequences' else 'tables' end || ' to ' || coalesce(quote_ident(t.rolname::text), 'public')
  from pg_default_acl d left join pg_namespace n on n.oid = d.defaclnamespace cross join lateral aclexplode(d.defaclacl) a left join pg_roles t on t.oid = a.grantee
  where d.defaclobjtype in ('r', 'S') and a.grantee <> d.defaclrole and d.defaclrole = (select oid from pg_roles where rolname = current_user)
) g left join pg_roles r on r.oid = g.grantee
where coalesce(r.rolname::text, '') <> current_user::text
order by 1
SQL
}
"#
    };
}
pub(super) use grants;
