// Results that survive a reload: in this browser's own database (IndexedDB), until they are removed or cleared.

let opening = null;

/** Opens the database once; null where the browser has none, as in some private windows. */
function database() {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open("unrain", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("results", { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

async function change(mode, act) {
  const base = await database();
  if (!base) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = base.transaction("results", mode);
    const request = act(transaction.objectStore("results"));
    // What a page that is about to be left has not committed would be undone.
    transaction.commit();
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

/** Keeps a record ({ id, at, ... }); false if there is no room for it. */
export const keep = (record) => change("readwrite", (store) => store.put(record)).then(() => true, () => false);

export const drop = (id) => change("readwrite", (store) => store.delete(id)).catch(() => {});

/** All records, the oldest first. */
export async function kept() {
  const records = (await change("readonly", (store) => store.getAll()).catch(() => [])) ?? [];
  return records.sort((one, other) => one.at - other.at);
}
