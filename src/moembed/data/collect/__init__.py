"""Pairs from what a Debian or Python machine has installed, for `moembed data collect`.

A file for each kind of place: message catalogues, manual pages, LibreOffice's help, package descriptions.
Nothing is downloaded, and nothing that is read is run.
"""
