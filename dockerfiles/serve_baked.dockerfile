# The serve image with one bundle inside, for a place without a registry. The context is the bundle's folder, never this repository:
# docker build --file dockerfiles/serve_baked.dockerfile --build-arg BASE=…/serve:COMMIT --build-arg SEAL=… FOLDER
# SEAL is `seal` in the bundle's manifest.json: a bundle with another one, or with a byte changed, is not baked in.
ARG BASE

FROM ${BASE}
ARG SEAL
COPY . /bundle/
ENV PIGEONHOLE_BUNDLE=/bundle
RUN ["python", "-c", "import os; from pigeonhole.bundle import open_bundle; found = open_bundle('/bundle').manifest.seal; assert found == os.environ['SEAL'], found"]
