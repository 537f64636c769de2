"""One reader per data set layout: a folder in, a cohort table out."""
