"""A page on this machine to try trained models on photos: launch/app.py.

flags.py     what may be set, and the limits
command.py   the address, the models, and the way out
server.py    requests and responses
upload.py    what a visitor sends: read within the limits, or refused
worker.py    the one thread that computes, and who waits for it
forms.py     the three things that can be asked, and what is told of a reading
page/        HTML, style and script; nothing is fetched from elsewhere
"""
