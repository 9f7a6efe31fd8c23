# docker build -t tickwheel . && docker run --rm -v tickwheel:/var/lib/tickwheel tickwheel keys create first
# docker run -p 8080:8080 -v tickwheel:/var/lib/tickwheel tickwheel
FROM python:3.13-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim
COPY --from=build /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[server,embedded]" \
    && rm -r /dist \
    && useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin tickwheel \
    && install -d -o tickwheel -g tickwheel -m 700 /var/lib/tickwheel
USER tickwheel
# With TICKWHEEL_DSN set, that Postgres is used and the data directory stays empty.
ENV TICKWHEEL_HOST=0.0.0.0 \
    TICKWHEEL_PORT=8080 \
    TICKWHEEL_DATA_DIR=/var/lib/tickwheel
VOLUME /var/lib/tickwheel
EXPOSE 8080
# Not /readyz: who waits for its database is not to be replaced.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TICKWHEEL_PORT\"]}/healthz', timeout=2)"]
ENTRYPOINT ["tickwheel"]
CMD ["serve"]
