# Makes Snakemake's records travel with git and DVC; see scripts/lib/provenance.py. (Filled by the versions part.)
