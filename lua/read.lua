-- The first part of each script reads a record. The script that only reads consists of
-- this part and one more line.
--
-- KEYS[1]  the hash that storage_redis.go describes
-- ARGV     1 source, 2 sequence number (20 digits, or none)
-- Reply    status (0 read or conflict, 1 done, 2 duplicate), v, g, now, t, n, w, r
--
-- The hash is untrusted: values are checked before they are used as numbers. Times are
-- whole milliseconds. int formats all numbers.

local key, number = KEYS[1], ARGV[2]

local function int(n) return string.format('%.0f', n) end

local function whole(s) return tonumber(string.match(s or '', '^%d+$') or '0') or 0 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local source = 's:' .. ARGV[1]
-- Redis stores a hash without values above 64 bytes in half the memory. So a short
-- record is in pieces, and only a long one in r.
local pieces, width = { 'r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'r7', 'r8' }, 64
local old = redis.pcall('HMGET', key, 'v', 'g', 't', 'n', 'w', 'r', source, unpack(pieces))
local problem = old.err and string.match(old.err, '^%u+')
if problem and problem ~= 'WRONGTYPE' then return old end

local function short(s) return string.sub(s or '0', 1, 20) end

-- version returns 0 if there is no record, none for a hash without a version, and
-- WRONGTYPE for a key that is not a hash.
local function version() return short(problem or old[1] or (redis.call('HLEN', key) == 0 and '0' or 'none')) end

-- record returns the record as it was read. Without one of its pieces, the rest could
-- still be JSON: then it returns what is none.
local function record()
  if (old[6] or '') ~= '' then return old[6] end
  local text = ''
  for i = 1, #pieces do
    local piece = old[7 + i] or ''
    if piece ~= '' and #text ~= (i - 1) * width then return 'incomplete' end
    text = text .. piece
  end
  return text
end

local function reply(status, v, g, t, n, w, r)
  return { status, v, short(g), int(now), short(t), short(n), string.sub(w or '', 1, 601), string.sub(r or '', 1, 262145) }
end

-- duplicate reports whether the source's change with that sequence number was made before.
local function duplicate()
  local last = string.match(old[7] or '', '^(%d+)')
  return number ~= '' and last and #last == 20 and last >= number
end
