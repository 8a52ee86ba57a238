"""The claims of SPEC with their witnesses, a file a subject; `refprune.audit.catalogue` lists the files."""
