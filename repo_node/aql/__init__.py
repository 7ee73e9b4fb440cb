"""Artifactory's query language: text (``grammar``) to a tree (``tree``) to what may be asked (``checking``). Pure."""
