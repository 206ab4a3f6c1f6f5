# docker build -t onnx-dfmpc .
# docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" onnx-dfmpc quantize model.onnx --target-ratio 8
FROM python:3.13-slim AS build
COPY . /source
RUN python -m pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.13-slim
COPY --from=build /wheels /wheels
# images and report: what --data and --report take beyond the core; the sweep's cluster is for an image of its own.
RUN set -- /wheels/*.whl && python -m pip install --no-cache-dir "$1[images,report]" && rm -r /wheels \
    && useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["onnx-dfmpc"]
CMD ["--help"]
