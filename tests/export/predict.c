/* Finds the cells of an image with TensorFlow's C library alone.
 *
 *   predict MODEL IMAGE INPUT COUNT BOXES SCORES OK ERROR
 *
 * MODEL is the folder of a SavedModel; the last six are the names of tensors, OPERATION:INDEX, that its
 * signature gives. Prints "count N", then "score y0 x0 y1 x1" for each cell; exits with 1 and a reason
 * on stderr otherwise. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { COUNT, BOXES, SCORES, OK, ERROR, OUTPUTS };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status *status, const char *what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) fail(path, "cannot be opened");
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  char *data = malloc(*size + 1);
  if (data == NULL || fread(data, 1, *size, file) != *size) fail(path, "cannot be read");
  fclose(file);
  return data;
}

static TF_Output find(TF_Graph *graph, const char *name) {
  char operation[256];
  const char *colon = strrchr(name, ':');
  if (colon == NULL || (size_t)(colon - name) >= sizeof operation) fail(name, "is not OPERATION:INDEX");
  memcpy(operation, name, (size_t)(colon - name));
  operation[colon - name] = '\0';
  TF_Output found = {TF_GraphOperationByName(graph, operation), atoi(colon + 1)};
  if (found.oper == NULL) fail(name, "is not in the graph");
  return found;
}

static void free_text(void *data, size_t length, void *unused) {
  (void)length;
  (void)unused;
  TF_StringDealloc(data);
  free(data);
}

static TF_Tensor *text_tensor(const char *data, size_t size) {
  const int64_t one = 1;
  TF_TString *text = malloc(sizeof *text);
  TF_StringInit(text);
  TF_StringCopy(text, data, size);
  return TF_NewTensor(TF_STRING, &one, 1, text, sizeof *text, free_text, NULL);
}

int main(int argc, char **argv) {
  if (argc != 9) fail("usage", "predict MODEL IMAGE INPUT COUNT BOXES SCORES OK ERROR");
  size_t size;
  char *image = read_file(argv[2], &size);

  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status, argv[1]);

  TF_Output input = find(graph, argv[3]), outputs[OUTPUTS];
  for (int k = 0; k < OUTPUTS; k++) outputs[k] = find(graph, argv[4 + k]);
  TF_Tensor *fed = text_tensor(image, size), *found[OUTPUTS];
  TF_SessionRun(session, NULL, &input, &fed, 1, outputs, found, OUTPUTS, NULL, 0, NULL, status);
  check(status, "run");

  if (!*(const unsigned char *)TF_TensorData(found[OK])) {
    const TF_TString *error = TF_TensorData(found[ERROR]);
    fprintf(stderr, "%s: %.*s\n", argv[2], (int)TF_StringGetSize(error), TF_StringGetDataPointer(error));
    return 1;
  }
  const int32_t count = *(const int32_t *)TF_TensorData(found[COUNT]);
  const float *boxes = TF_TensorData(found[BOXES]), *scores = TF_TensorData(found[SCORES]);
  if (TF_Dim(found[BOXES], 1) < count || TF_Dim(found[BOXES], 2) != 4) fail("boxes", "have another shape");
  printf("count %d\n", count);
  for (int32_t k = 0; k < count; k++) {
    const float *box = boxes + 4 * k;
    printf("%.9g %.9g %.9g %.9g %.9g\n", scores[k], box[0], box[1], box[2], box[3]);
  }

  for (int k = 0; k < OUTPUTS; k++) TF_DeleteTensor(found[k]);
  TF_DeleteTensor(fed);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  free(image);
  return 0;
}
