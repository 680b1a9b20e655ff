"""The command line of operators: ``kollator assign`` and ``kollator ctl``, over the fronts' HTTP.

A program of its own that starts at once: it imports neither Twisted nor a database nor WebRTC, and nothing of a front
but how a key file is read.

* ``main``: the arguments, the exit statuses and their one line on standard error
* ``commands``: what each command asks and shows
* ``asking``: one HTTP request to the front of a URL, bounded in time and size
* ``reading``: the answers as far as they are shown
* ``text``: tables, and texts that a terminal can be trusted with
"""
